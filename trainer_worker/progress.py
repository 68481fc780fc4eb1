"""Where some chunks of a job are, as percent of the whole job."""

import time
from collections.abc import Callable

from loramem.records import Phase, Progress
from trainer_worker.lease import Lease, remaining_s

OnPhase = Callable[[Phase, int, int, float | None], None]
"""(phase, step, total steps, loss): says where the job is, and raises when it must stop."""

SHARES: dict[Phase, tuple[float, float]] = {
    "synthesize": (0.0, 0.22),
    "train": (0.22, 0.92),
    "examine": (0.92, 1.0),
}
"""From where to where each phase brings a chunk; as the sample took on two cores without AVX-512."""
INDEXED_PERCENT = 3.0
PUBLISHED_PERCENT = 99.0
CHECK_EVERY_S = 1.0


class ChunkProgress:
    """Chunks that are worked on together: from the one at `first` (0 is the text's), `count` of them, `of` in all.

    `kept` chunks of the job were done by an earlier attempt. `note` is shown beside the chunks' numbers;
    `before_step` may raise to stop; it is called once a second at most.
    """

    def __init__(
        self,
        lease: Lease,
        first: int,
        count: int,
        of: int,
        kept: int = 0,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.note = ""
        self._lease, self._first, self._count, self._of = lease, first, count, of
        self._share = (PUBLISHED_PERCENT - INDEXED_PERCENT) / of
        self._before_step, self._checked_at = before_step, -CHECK_EVERY_S
        self._free = self._share * kept
        self._reached = 0.0

    def step(self, phase: Phase, done: int, total: int, loss: float | None = None) -> None:
        """Percent never falls: rounds are added while they run, and what failed its exam is trained again."""
        if time.monotonic() - self._checked_at >= CHECK_EVERY_S:
            self._checked_at = time.monotonic()
            self._before_step()
        begin, end = SHARES[phase]
        self._reached = max(self._reached, begin + (end - begin) * (done / total if total else 0.0))
        percent = INDEXED_PERCENT + self._share * (self._first + self._count * self._reached)
        left = remaining_s(self._lease.elapsed_s, percent, self._free)
        self._lease.progress(
            Progress(
                phase=phase,
                step=done,
                total_steps=total,
                percent=round(percent, 1),
                loss=loss,
                eta_s=None if left is None else round(left, 1),
                message=self._message,
            )
        )

    def publishing(self, done: int, total: int) -> None:
        """The chunks are done, and what is found of them is stored."""
        percent = round(INDEXED_PERCENT + self._share * (self._first + self._count), 1)
        self._lease.progress(
            Progress(phase="publish", step=done, total_steps=total, percent=percent, message=self._message)
        )

    def kept(self) -> None:
        """The chunks are done, and no later attempt does them again."""
        self._lease.kept()

    def part(self, index: int) -> OnPhase:
        """Progress of the chunk at `index` of these, as if each took as long."""
        return lambda phase, done, total, loss: self.step(phase, index * total + done, self._count * total, loss)

    @property
    def _message(self) -> str:
        first, last = self._first + 1, self._first + self._count
        chunks = f"chunk {first} of {self._of}" if first == last else f"chunks {first} to {last} of {self._of}"
        return f"{chunks}, {self.note}" if self.note else chunks
