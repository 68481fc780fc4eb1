"""A question through the embedder in half the time on a CPU: its transformer as a graph that ONNX Runtime runs.

Torch packs every weight matrix anew for each question; ONNX Runtime does so once, when it loads the graph. The vectors
are the same within rounding, which is checked each time a graph is loaded. Texts in batches stay with torch, which is
no slower there.
"""

import hashlib
import logging
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramem.cache import made_once

if TYPE_CHECKING:
    import onnxruntime
    from torch import Tensor

log = logging.getLogger(__name__)

FILE, OUTPUT = "model.onnx", "last_hidden_state"
TOLERANCE = 1e-4
"""Of hidden states, whose entries are of the order of 1; 2e-6 was measured."""
LONG = 512
"""Tokens to check with where a model does not say how many it reads."""
Features = dict[str, "Tensor"]
"""What a tokenizer makes of one text: each of shape (1, tokens), int64."""


class NotTheSame(Exception):
    """The graph computes something else than the model."""


def hasten(model: Any, sample: str, cache: Path) -> None:
    """Have a sentence-transformers model's single texts run by ONNX Runtime from now on.

    The graph is exported into `cache` the first time (seconds), with `sample`, a text of several tokens. Where it
    cannot be had, a warning says why and torch goes on; so it does for a text that the graph fails on.
    """
    try:
        transformer, tokens = model[0].auto_model, dict(model.tokenizer([sample], return_tensors="pt"))
        folder = cache / f"embedder-{_digest(transformer)}"
        started = time.monotonic()
        if made_once(folder, partial(_export, transformer, tokens)):
            log.info("embedder exported to %s in %.0f s", folder, time.monotonic() - started)
        session = _session(folder / FILE)
        for length in (len(tokens["input_ids"][0]) - 1, int(model.max_seq_length or LONG)):
            _check(transformer, session, _of_length(tokens, length))
    except Exception as error:  # noqa: BLE001 of exporter, runtime or disk: the kinds are many, and only speed is lost
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        log.warning("questions are embedded by torch, in about twice the time: %s", reason)
        return
    _take_over(transformer, session)


def _take_over(transformer: Any, session: "onnxruntime.InferenceSession") -> None:
    from transformers.modeling_outputs import BaseModelOutput

    stock, names = transformer.forward, {one.name for one in session.get_inputs()}

    def forward(*args: Any, **given: Any) -> Any:
        features = {name: value for name, value in given.items() if name != "return_dict"}
        if args or features.keys() != names or any(one.shape[0] != 1 for one in features.values()):
            return stock(*args, **given)
        try:
            return BaseModelOutput(last_hidden_state=_run(session, features))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 ONNX Runtime's have no common base; torch can still answer
            log.warning("ONNX Runtime failed on a text, torch embeds it: %s", error)
            return stock(**given)

    transformer.forward = forward


def _export(transformer: Any, sample: Features, folder: Path) -> None:
    import torch

    lengths = {name: {1: torch.export.Dim.DYNAMIC} for name in sample}
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # which tell of every node, and warn of packages not needed
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of its own insides
        torch.onnx.export(
            transformer,
            kwargs=dict(sample),
            f=folder / FILE,
            dynamo=True,
            input_names=list(sample),
            output_names=[OUTPUT],
            dynamic_shapes=lengths,
            verbose=False,
        )


def _session(file: Path) -> "onnxruntime.InferenceSession":
    """On one thread: a question is too short to share, and the engine holds the other cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _run(session: "onnxruntime.InferenceSession", features: Features) -> "Tensor":
    import torch

    (hidden,) = session.run([OUTPUT], {name: tensor.numpy() for name, tensor in features.items()})
    return torch.from_numpy(hidden)


def _check(transformer: Any, session: "onnxruntime.InferenceSession", tokens: Features) -> None:
    """Raises `NotTheSame`."""
    import torch

    if (names := {one.name for one in session.get_inputs()}) != tokens.keys():
        raise NotTheSame(f"the graph reads {sorted(names)}, the tokenizer gives {sorted(tokens)}")
    with torch.inference_mode():
        apart = (_run(session, tokens) - transformer(**tokens).last_hidden_state).abs().max().item()
    if not apart <= TOLERANCE:
        raise NotTheSame(f"hidden states differ by {apart:.2g}")


def _of_length(tokens: Features, length: int) -> Features:
    """The tokens again and again."""
    times = -(-length // tokens["input_ids"].shape[1])
    return {name: tensor.repeat(1, times)[:, :length] for name, tensor in tokens.items()}


def _digest(transformer: Any) -> str:
    """Of the weights, the configuration and what exports them."""
    digest = hashlib.sha256(transformer.config.to_json_string().encode())
    for name, tensor in transformer.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    for package in ("torch", "transformers", "onnxscript"):
        digest.update(f"{package} {version(package)}".encode())
    return digest.hexdigest()[:16]
