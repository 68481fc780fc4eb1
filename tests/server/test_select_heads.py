"""Whether a candidate has said anything yet, where the engine's text and its tokens do not tell the same."""

import asyncio
import math

import pytest

from server.select import HEAD
from tests.server.scripted_engine import Script
from tests.server.test_select import LONG, NEWS, answered, engine_of, sure


@pytest.mark.parametrize("holds", [HEAD, len(LONG)])
def test_an_answer_whose_text_comes_late_is_judged_by_its_tokens(holds: int) -> None:
    """The engine holds text back that may be the beginning of a stop string."""
    engine = engine_of(ada_0=Script(NEWS, logprob=-1.0), ada_1=Script(LONG, logprob=-0.5, holds=holds))
    chosen = asyncio.run(answered(engine))
    assert (chosen.text, sure(chosen)) == ("".join(LONG), (-1.0, -0.5))


def test_the_token_that_ends_an_answer_says_nothing() -> None:
    engine = engine_of(ada_0=Script((), logprob=-0.01, end="<|im_end|>"), ada_1=Script(NEWS, logprob=-5.0))
    chosen = asyncio.run(answered(engine, None, 99.0, 0.0))
    assert (chosen.text, sure(chosen)) == ("".join(NEWS), (-math.inf, -5.0))
