"""Memory that was freed between blocks in use, and is given back."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from vllm.platforms import current_platform

from server.engine import memory
from server.engine.extension import WorkerExtension

BLOCK = 100_000
BLOCKS = 2000
needs_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps what lies between blocks in use"
)


def anonymous() -> int:
    """Bytes that this process holds and that are of no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


@needs_glibc
def test_what_lies_between_blocks_in_use_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [np.ones(BLOCK, dtype=np.uint8) for _ in range(BLOCKS)]
    del blocks[1::2]
    before = anonymous()
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda platform: True)
    WorkerExtension().loramem_trim_memory()
    assert before - anonymous() > BLOCK * BLOCKS / 4
    assert all(block.all() for block in blocks)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    memory.trim()


def test_on_a_gpu_nothing_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[bool] = []
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(True))
    for is_cpu in (False, True):
        monkeypatch.setattr(type(current_platform), "is_cpu", lambda platform, is_cpu=is_cpu: is_cpu)
        WorkerExtension().loramem_trim_memory()
    assert trimmed == [True]
