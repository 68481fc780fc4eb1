"""What a worker process is put together from; its models and its loop are left out."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from loramem.queue import JobQueue
from loramem.settings import Settings
from trainer_worker import __main__ as worker_main
from trainer_worker.consume import Chore, Hooks, Work


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a worker that has nothing to load; the test's own signal handlers are put back."""
    monkeypatch.setenv("LORAMEM_HOME", str(tmp_path))
    monkeypatch.setattr(worker_main, "configure", lambda role, level: None)
    monkeypatch.setattr(worker_main, "resolve_base_model", lambda settings: None)
    monkeypatch.setattr(worker_main, "make_builder", lambda *given: SimpleNamespace(work=given))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


Loop = Callable[[threading.Event, Sequence[Chore], Hooks], None]


def run(monkeypatch: pytest.MonkeyPatch, loop: Loop) -> None:
    """`main` with a loop that is over after one round."""

    def consume(
        queue: JobQueue, work: Work, settings: Settings, stop: threading.Event, chores: Sequence[Chore], hooks: Hooks
    ) -> None:
        loop(stop, chores, hooks)

    monkeypatch.setattr(worker_main, "consume", consume)
    worker_main.main()


def test_its_chores_run_and_sweep_what_nobody_needs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = home / "jobs" / "job_nobody_knows"
    left.mkdir(parents=True)
    names: list[str] = []

    def loop(stop: threading.Event, chores: Sequence[Chore], hooks: Hooks) -> None:
        for chore in chores:
            assert isinstance(chore, partial)
            names.append(chore.func.__name__)
            chore()

    run(monkeypatch, loop)
    sweeps = {"retired", "superseded", "temporary", "previews", "events", "checkpoints"}
    assert {f"sweep_{name}" for name in sweeps} <= set(names)
    assert not left.exists()


def test_what_a_job_kept_is_forgotten_and_its_progress_is_watched(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = home / "jobs" / "job_1"
    kept.mkdir(parents=True)
    watches: list[int] = []

    def loop(stop: threading.Event, chores: Sequence[Chore], hooks: Hooks) -> None:
        hooks.forget("job_1")
        watches.append(len(hooks.watches))

    run(monkeypatch, loop)
    assert not kept.exists()
    assert watches == [3]  # traces, metrics and the bar


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it(home: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    stopped: list[bool] = []

    def loop(stop: threading.Event, chores: Sequence[Chore], hooks: Hooks) -> None:
        os.kill(os.getpid(), number)
        stopped.append(stop.wait(10))

    run(monkeypatch, loop)
    assert stopped == [True]
