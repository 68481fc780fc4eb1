"""A progress bar for whoever sits at the worker's terminal.

43%|########            | job_0192: train 32/75, chunk 2 of 5, loss 0.412, 03:20 left
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm  # type: ignore[import-untyped]
from tqdm.contrib.logging import logging_redirect_tqdm  # type: ignore[import-untyped]

from loramem.queue import Claim
from loramem.records import Progress
from trainer_worker.lease import Observer, show_nobody

LAYOUT = "{percentage:3.0f}%|{bar:20}| {desc}"


@contextmanager
def bar(stream: TextIO, claim: Claim) -> Iterator[Observer]:
    """The job's bar on `stream` for as long as the block lasts; log lines go above it. Gives what shows progress,
    and that shows nothing where `stream` is no terminal."""
    if not stream.isatty():
        yield show_nobody
        return
    shown = tqdm(total=100, file=stream, bar_format=LAYOUT, leave=False, dynamic_ncols=True, disable=False)

    def show(progress: Progress) -> None:
        shown.n = progress.percent
        shown.set_description_str(f"{claim.job_id}: {words(progress)}", refresh=True)

    with shown, logging_redirect_tqdm():
        yield show


def words(progress: Progress) -> str:
    """Phase, step, message, loss and time left, those of them that are known."""
    steps = f" {progress.step}/{progress.total_steps}" if progress.total_steps else ""
    loss = f"loss {progress.loss:.3f}" if progress.loss is not None else ""
    left = f"{tqdm.format_interval(progress.eta_s)} left" if progress.eta_s is not None else ""
    return ", ".join(part for part in (progress.phase + steps, progress.message, loss, left) if part)
