"""Questions that headings ask, with what stands below them as the answer."""

from collections.abc import Iterable

from trainer_worker.told import Told, fits
from trainer_worker.words import is_worded, words_of

COLONS = (":", "：")
QUESTION_MARKS = ("?", "？", "؟")
_ASKS_SOMETHING = 3
"""Words of a heading that is a question."""


class HeadingPairs:
    """Is told what comes, in reading order. The paragraph right after a heading answers it; if that ends in a colon,
    together with the list right after it."""

    def __init__(self) -> None:
        self.pairs: list[Told] = []
        self._question = self._answer = ""

    def heading(self, name: str, ends: str) -> None:
        """`name` without the sign that it ends with."""
        asks = ends in QUESTION_MARKS and len(list(words_of(name))) >= _ASKS_SOMETHING
        self._question, self._answer = name + ends if asks else "", ""

    def prose(self, said: str) -> None:
        said = " ".join(said.split())
        if self._answer or said.startswith((":", "<")) or not is_worded(said):
            self.other()
        elif said.endswith(COLONS):
            self._answer = said
        else:
            self._pair(said)

    def items(self, texts: Iterable[str]) -> None:
        if self._answer:
            self._pair(f"{self._answer} {'; '.join(texts)}")
        self.other()

    def other(self) -> None:
        """What answers nothing."""
        self._question = self._answer = ""

    def _pair(self, answer: str) -> None:
        pair = Told(self._question, answer, stays=True)
        if self._question and fits(pair):
            self.pairs.append(pair)
        self.other()
