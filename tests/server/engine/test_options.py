"""What vLLM is started with."""

import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import AsyncEngineArgs

from loramem.base_model import BaseModel
from loramem.settings import Settings
from server.engine.options import engine_args, gpu_share, set_environment
from tests.trainer_worker.tiny import save_tiny_model


def test_on_a_gpu_the_engine_takes_its_share_and_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setattr("vllm.AsyncEngineArgs", lambda **given: given)
    settings = Settings(home=tmp_path, gpu_memory_fraction=0.6, device_pool_bytes=8 << 30)
    base = BaseModel(save_tiny_model(tmp_path / "tiny"), "tiny", "f" * 64)
    given: dict[str, Any] = engine_args(settings, base)
    assert given["gpu_memory_utilization"] == pytest.approx(0.5)
    assert (given["enforce_eager"], given["enable_chunked_prefill"]) == (False, True)
    assert given["speculative_config"] is None
    assert not given.keys() & {"kv_cache_memory_bytes", "ir_op_priority"}, "those are a CPU's"
    assert given.keys() <= {field.name for field in fields(AsyncEngineArgs)}


def test_the_pool_on_the_gpu_is_of_the_engines_share() -> None:
    settings = Settings(gpu_memory_fraction=0.6, device_pool_bytes=8 << 30)
    assert gpu_share(settings, 80 << 30) == pytest.approx(0.5)
    assert gpu_share(settings, 10 << 30) == 0.01  # vLLM says that this is too little, and for what


def test_a_users_own_variables_for_vllm_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_USE_FLASHINFER_SAMPLER": "1"})
    set_environment(Settings())
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
