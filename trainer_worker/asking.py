"""Prompts to the writer, sampled where that is wanted, with the progress of all of them together."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer_worker.writer import Prompt, PromptRefused, Writer

OnProgress = Callable[[int, int], None]
"""(prompts answered, prompts planned so far)."""
TEMPERATURE = 0.7
SEEDS = 2**30
"""Below 2**31, the most that the engine takes, with room for one seed a prompt."""


@dataclass
class Asking:
    """`plan` before `texts`: what is answered never exceeds what is planned, which grows with the rounds."""

    writer: Writer
    on_progress: OnProgress
    seed: int
    answered: int = 0
    planned: int = 0
    heard: bool = False

    def plan(self, prompts: int) -> None:
        self.planned += prompts

    def texts(
        self, prompts: Sequence[Prompt], *, max_tokens: int, stop: Sequence[str] = (), draw: str = ""
    ) -> list[str]:
        """Greedy texts; with the name of a `draw`, sampled ones, others for every name and every seed. Those refused
        are empty; where no prompt was ever answered, raises what the writer raises."""
        try:
            found = self.writer.complete(
                prompts,
                max_tokens=max_tokens,
                temperature=TEMPERATURE if draw else 0.0,
                seed=random.Random(f"{self.seed} {draw}").randrange(SEEDS),
                stop=stop,
                on_each=self._on_each,
                on_wait=lambda: self.on_progress(self.answered, self.planned),
            )
        except PromptRefused:
            if not self.heard:
                raise
            return [""] * len(prompts)
        self.heard = self.heard or any(found)
        return found

    def _on_each(self) -> None:
        self.answered += 1
        self.on_progress(self.answered, self.planned)
