"""What weights are computed in."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loramem.base_model import BaseModel
from loramem.precision import Precision, precision
from loramem.settings import Settings
from server.engine.options import engine_args, least_kv_cache_bytes
from tests.trainer_worker.tiny import save_tiny_model
from trainer_worker.base import Base


@pytest.mark.parametrize(
    ("on_gpu", "is_built_in", "has_products", "expected"),
    [
        (False, True, True, "bfloat16"),
        (False, True, False, "float32"),
        (False, False, True, "float32"),
        (True, True, False, "bfloat16"),
    ],
)
def test_a_cpu_without_products_of_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, is_built_in: bool, has_products: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: is_built_in)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_products)
    assert precision() == expected


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_engine_and_trainer_compute_in_one_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Precision
) -> None:
    monkeypatch.setattr(
        "vllm.AsyncEngineArgs", lambda **given: given
    )  # the real one takes our plugin into this process
    monkeypatch.setattr("server.engine.options.precision", lambda: kind)
    monkeypatch.setattr("trainer_worker.base.precision", lambda: kind)
    folder = save_tiny_model(tmp_path)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert engine_args(Settings(), BaseModel(folder, "tiny", "f" * 64))["dtype"] == kind
    assert Base(str(folder)).model.dtype == getattr(torch, kind)


def test_a_base_of_float32_is_trained_as_it_is(tmp_path: Path) -> None:
    assert Base(str(save_tiny_model(tmp_path))).model.dtype == torch.float32


def test_a_window_takes_twice_the_memory_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseModel(save_tiny_model(tmp_path), "tiny", "f" * 64)
    needed = []
    for kind in ("bfloat16", "float32"):
        monkeypatch.setattr("server.engine.options.precision", lambda kind=kind: kind)
        needed.append(least_kv_cache_bytes(Settings(), base))
    assert needed[1] == 2 * needed[0] > 0
