"""What the engine's worker does before the first question."""

import gc
import os
from collections.abc import Iterator

import pytest

from server.engine.extension import WorkerExtension
from tests.server.engine.test_cpu_threads import cores, thread


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_what_is_there_after_warming_up_is_not_looked_through_for_garbage_again() -> None:
    gc.unfreeze()
    before = len(gc.get_objects())
    WorkerExtension().loramem_warm_up()
    assert gc.get_freeze_count() > before / 2
    assert len(gc.get_objects()) < before / 2


@pytest.mark.usefixtures("thawed")
def test_helpers_are_bound_to_one_core_no_longer() -> None:
    with thread("gloo_tcp_loop") as helper:
        WorkerExtension().loramem_warm_up()
        assert os.sched_getaffinity(helper) == cores()
