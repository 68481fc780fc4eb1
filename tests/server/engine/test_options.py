"""What vLLM is started with."""

import os

import pytest

from loramem.settings import Settings
from server.engine.options import gpu_share, set_environment


def test_the_pool_on_the_gpu_is_of_the_engines_share() -> None:
    settings = Settings(gpu_memory_fraction=0.6, device_pool_bytes=8 << 30)
    assert gpu_share(settings, 80 << 30) == pytest.approx(0.5)
    assert gpu_share(settings, 10 << 30) == 0.01  # vLLM says that this is too little, and for what


def test_a_users_own_variables_for_vllm_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_USE_FLASHINFER_SAMPLER": "1"})
    set_environment(Settings())
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
