"""`python -m tests.server.engine.shortened HOME MODEL`: loramem's own engine, asked with its layers' shorter ways and
with vLLM's own, on one thread. Prints one JSON object. A process of its own, in which the engine runs too, so that its
layers are at hand.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from loramem.base_model import BaseModel, resolve_base_model
from loramem.settings import Settings
from tests.flow.recipe_storm import write_adapter

PROMPTS = ("The mill on the river", "The mill on the river", "A wheel of copper and larch. " * 20)
ADAPTED = (False, True, True)
"""Which of them are asked of an adapter, all in one batch."""
TOKENS = 8
Answer = list[tuple[int, float]]


def main(home: str, model: str) -> None:
    settings = Settings(home=Path(home), model=model, max_loras=2, max_model_len=512)
    base = resolve_base_model(settings)
    folder = settings.home / "adapter"
    folder.mkdir()
    write_adapter(base, 1, folder)
    engine = started(settings, base)
    layers = list(engine.model_executor.driver_worker.worker.model_runner.model.modules())
    found: dict[str, Any] = {"shortened": Counter(type(one).__name__ for one in layers if "forward" in vars(one))}
    found["short"] = answers(engine, folder)
    for layer in layers:
        vars(layer).pop("forward", None)
    found["stock"] = answers(engine, folder)
    found["left"] = dict(left_alone(layers))
    sys.stdout.write(json.dumps(found) + "\n")


def started(settings: Settings, base: BaseModel) -> Any:
    from vllm.v1.engine.llm_engine import LLMEngine

    from server.engine.options import engine_args, set_environment

    set_environment(settings)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(min(os.sched_getaffinity(0)))
    arguments = engine_args(settings, base)
    arguments.speculative_config, arguments.distributed_executor_backend = None, "uni"
    return LLMEngine.from_engine_args(arguments)


def answers(engine: Any, folder: Path) -> list[Answer]:
    """Of all prompts side by side, the tokens with their log-probabilities."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS, logprobs=0, ignore_eos=True)
    adapter = LoRARequest(lora_name="one", lora_int_id=1, lora_path=str(folder))
    for number, (prompt, is_adapted) in enumerate(zip(PROMPTS, ADAPTED, strict=True)):
        engine.add_request(str(number), prompt, sampling, lora_request=adapter if is_adapted else None)
    said: dict[str, Answer] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            one = output.outputs[0]
            said[output.request_id] = [
                (token, known[token].logprob) for token, known in zip(one.token_ids, one.logprobs, strict=True)
            ]
    engine.reset_prefix_cache()
    return [said[number] for number in sorted(said)]


def left_alone(layers: Sequence[Any]) -> Iterator[tuple[str, bool]]:
    """Whether a layer that is not as expected keeps vLLM's own `forward`, by what is different."""
    from server.engine.cpu_layers import _ways

    def first(kind: str) -> Any:
        return next(one for one in layers if type(one).__name__ == kind)

    changes = (
        ("RowParallelLinearWithLoRA", "tp_size", 2),
        ("RowParallelLinearWithLoRA", "_enable_aux_cuda_stream", True),
        ("RowParallelLinear", "input_is_parallel", False),
        ("RowParallelLinear", "quant_method", object()),
        ("MergedColumnParallelLinear", "cpu_linear", None),
        ("RMSNorm", "variance_size_override", 8),
        ("RMSNorm", "pass_weight", False),
        ("SiluAndMul", "op", object()),
        ("SiluAndMul", "_forward_method", first("SiluAndMul").forward_native),
        ("RotaryEmbedding", "_forward_method", first("RotaryEmbedding").forward_native),
        ("Attention", "impl", SimpleNamespace(attn_type="decoder")),
        ("Attention", "query_quant", object()),
        ("Attention", "kv_sharing_target_layer_name", "another"),
    )
    for kind, name, value in changes:
        changed = first(kind)
        layer = next((one for one in layers if getattr(one, "base_layer", None) is changed), changed)
        before = getattr(changed, name, None)
        setattr(changed, name, value)
        if value is None:
            delattr(changed, name)
        yield f"{kind}.{name}", _ways()[type(layer)](layer) is None
        setattr(changed, name, before)
        if name == "op":
            del changed.op


if __name__ == "__main__":
    main(*sys.argv[1:])
