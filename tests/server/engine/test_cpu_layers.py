"""Layers that go straight to their kernels say what vLLM's own ways say, to the last bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vllm.platforms import current_platform

from loramem.base_model import BaseModel
from server.engine import cpu_layers
from server.engine.cpu_layers import _Halves, shorten
from tests.server.engine.shortened import PROMPTS, TOKENS

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="needs vLLM for CPUs")


@pytest.fixture(scope="module")
def found(base_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("engine")
    command = [sys.executable, "-m", "tests.server.engine.shortened", str(home), str(base_model.path)]
    with (home / "log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, timeout=600, check=False)
    assert done.returncode == 0, (home / "log").read_text()[-4000:]
    parsed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return parsed


def test_every_layer_of_the_embedded_model_has_a_shorter_way(found: dict[str, Any]) -> None:
    assert found["shortened"] == {
        "RMSNorm": 61,
        "MergedQKVParallelLinearWithLoRA": 30,
        "RotaryEmbedding": 1,
        "Attention": 30,
        "RowParallelLinearWithLoRA": 60,
        "MergedColumnParallelLinearWithLoRA": 30,
        "SiluAndMul": 30,
    }


def test_answers_are_the_same_to_the_last_bit(found: dict[str, Any]) -> None:
    assert found["short"] == found["stock"]
    assert [len(answer) for answer in found["short"]] == [TOKENS] * len(PROMPTS)
    plain, adapted, _ = found["short"]
    assert plain != adapted, "the adapter says something else"


def test_a_layer_that_is_not_as_expected_is_left_alone(found: dict[str, Any]) -> None:
    assert len(found["left"]) == 13
    assert all(found["left"].values()), found["left"]


def test_other_layers_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.SiLU())
    assert shorten(model) == 0
    assert not any("forward" in vars(one) for one in model.modules())


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layers, "_ways", lambda: {nn.Linear: lambda layer: lambda x: x})
    assert shorten(nn.Linear(2, 2)) == 1
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda platform: False)
    assert shorten(nn.Linear(2, 2)) == 0


def test_a_new_cache_is_cut_anew() -> None:
    halves = _Halves()
    for first in (0.0, 100.0):
        cache = first + torch.arange(2 * 3 * 4 * 10.0).reshape(2, 3, 4, 10)
        keys, values = halves.of(cache)
        assert keys.shape == values.shape == (2, 3, 4, 5)
        assert keys[0, 0].flatten().tolist() == cache[0, 0].flatten()[:20].tolist()
        assert values[1, 2].flatten().tolist() == cache[1, 2].flatten()[20:].tolist()
        assert halves.of(cache)[0] is keys
