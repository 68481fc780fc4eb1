"""How many adapters a question needs, and whether what is stored can answer it at all.

The thresholds are a namespace's own, learnt from questions whose answer is known to lie in one adapter: those that were
held out of its training. Asked of the whole namespace they say how far the right adapter may lie behind the best; asked
with their own document left out, how high a question scores that nothing stored answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from server.ask import Choice

MOST = 3
"""Adapters chosen at most; further ones hold the answer too seldom to be worth what they spoil."""
INSIDE = 0.99
"""Share of the held-out questions whose adapter is to be among those chosen. They are easier than users' questions,
which is why it is not less."""
MARGINS = tuple(step / 100 for step in range(5, 31))
"""Tried in this order; a lead is a share of the best score."""
UNANSWERED = 0.95
"""Share of the questions without an answer that are to be known as such."""
RELEVANT = (0.22, 0.26)
"""Where the least relevant score may lie with the embedded embedder: held-out questions are not users' questions, so
they do not decide alone. Another's cosines may all be higher: see `_between`."""
STILL_FOUND = 0.95
STRONG_BY = 0.05
"""Above the least relevant score."""
ENOUGH = 20
"""Held-out questions; with fewer the defaults stay."""


@dataclass(frozen=True)
class Thresholds:
    """`margin`: a lead, as a share of the best score, that one adapter is chosen by. Below `relevant` nothing stored
    answers, below `strong` the text had better be looked at too. `questions` that they were learnt from; 0: defaults.
    """

    margin: float = 0.15
    relevant: float = 0.25
    strong: float = 0.30
    questions: int = 0


DEFAULTS = Thresholds()


@dataclass(frozen=True)
class Observed:
    """A held-out question's scores, best first, the place of its own adapter among them (None: not found), and the
    best score in other documents (None: there are none)."""

    scores: tuple[float, ...]
    right: int | None
    elsewhere: float | None


def choose(scores: Sequence[float], thresholds: Thresholds = DEFAULTS, *, untrained: float = 0.0) -> Choice:
    """What scores of different adapters, best first, call for; `untrained` is the best of chunks that have none yet."""
    best, margin = scores[0] if scores else None, _margin(scores)
    if untrained >= thresholds.relevant and (best is None or best < untrained):
        count = _count(scores, thresholds.margin) if scores else 0
        return Choice("untrained", count, margin, "what is most about this has no adapter yet", best)
    if best is None:
        return Choice("none", 0, margin, "nothing stored is about this: nothing is stored")
    if best < thresholds.relevant:
        reason = f"nothing stored is about this: the best score is {best:.2f}, below {thresholds.relevant:.2f}"
        return Choice("none", 1, margin, reason, best)
    count = _count(scores, thresholds.margin)
    if best < thresholds.strong:
        return Choice("weak", count, margin, f"the best score is {best:.2f}, below {thresholds.strong:.2f}", best)
    if count == 1:
        return Choice("confident", 1, margin, f"the best leads by {margin:.0%}, at least {thresholds.margin:.0%}", best)
    return Choice("unsure", count, margin, f"{count} are within {thresholds.margin:.0%} of the best score", best)


def calibrated(observed: Sequence[Observed], *, embedded: bool = True) -> Thresholds:
    """From held-out questions of one namespace; the defaults where these are too few to tell. `embedded`: the scores
    are of the embedder that the bounds were measured with.
    """
    if len(observed) < ENOUGH:
        return DEFAULTS
    elsewhere = sorted(one.elsewhere for one in observed if one.elsewhere is not None)
    relevant = _relevant(elsewhere, RELEVANT if embedded else _between(observed, elsewhere))
    return Thresholds(_least_margin(observed), relevant, relevant + STRONG_BY, len(observed))


def _least_margin(observed: Sequence[Observed]) -> float:
    for margin in MARGINS:
        inside = sum(one.right is not None and one.right < _count(one.scores, margin) for one in observed)
        if inside >= INSIDE * len(observed):
            return margin
    return MARGINS[-1]


def _between(observed: Sequence[Observed], elsewhere: Sequence[float]) -> tuple[float, float]:
    """Bounds of `relevant` by the questions alone: at most halfway between what they mostly score in other documents
    and what all but a few score in their own adapter, so that users' harder ones are found too; the default where the
    two overlap, as of documents that say the same."""
    right = sorted((one.scores[one.right] for one in observed if one.right is not None), reverse=True)
    if not right or not elsewhere:
        return DEFAULTS.relevant, DEFAULTS.relevant
    found = right[min(len(right) - 1, math.floor(STILL_FOUND * len(right)))]
    usual = elsewhere[len(elsewhere) // 2]
    return (0.0, (usual + found) / 2) if usual < found else (DEFAULTS.relevant, DEFAULTS.relevant)


def _relevant(elsewhere: Sequence[float], bounds: tuple[float, float]) -> float:
    """`elsewhere` in rising order."""
    if len(elsewhere) < ENOUGH:
        return DEFAULTS.relevant
    least, most = bounds
    above = min(len(elsewhere) - 1, math.ceil(UNANSWERED * len(elsewhere)))  # as many lie below this one
    return min(most, max(least, elsewhere[above]))


def _count(scores: Sequence[float], margin: float) -> int:
    least = scores[0] - margin * abs(scores[0])
    return sum(score >= least for score in scores[:MOST])


def _margin(scores: Sequence[float]) -> float:
    """The lead of the best, as a share of its score; 1 for the only one."""
    if len(scores) < 2:
        return 1.0
    return 1 - max(0.0, scores[1]) / scores[0] if scores[0] > 0 else 0.0
