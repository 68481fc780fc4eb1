"""Long texts of one mark take no time."""

import gc
import time
from collections.abc import Iterator

import pytest

from trainer_worker.marks import read

LINKS = ("[a](", "[a", "![a](", "[![a](b)", "[a]: /b ", '[a](b "c', "((a)")
OTHER_MARKS = (
    "*a ",
    "**a ",
    "***a",
    "*",
    "`a ",
    "<!--",
    "/*",
    "<details ",
    "- - ",
    "-",
    "> ",
    " ",
    "\\|",
    "a|",
    "|-",
    "a. ",
    "    # a\n    b\n",
    "    <hr>\n    a\n",
)
LINES = (
    "- a\n",
    "1. a:\n",
    "a:\n\n- b\n",
    "- a\nb\n",
    "| a\n",
    "|a|\n|-|\n|1|\n",
    "a\n|",
    "**a?**\nb\n",
    "- a:\n  - b\n",
    "- a:\n\n",
)
BLOCKS = (
    "```\n",
    "```x\n",
    "````\n~~~\n",
    "# a\n",
    "## a?#?",
    "a\n---\n\n",
    "# a\n\n",
    "## a b old mill\n",
    "<summary>",
    "<details><summary>a</summary>\n",
)


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    """Collecting garbage takes the longer the more was imported, by whatever test."""
    gc.disable()
    yield
    gc.enable()


def seconds(text: str, piece: str, size: int) -> float:
    started = time.process_time()
    read(text.replace("{}", piece * (size // len(piece))))
    return time.process_time() - started


@pytest.mark.parametrize("piece", [*LINKS, *OTHER_MARKS, *LINES, *BLOCKS])
@pytest.mark.parametrize("text", ["{}", "- {}x", "| a |\n|---|\n| {}x |", "# {}x", "## {}x\n\ny"])
def test_its_time_is_linear(text: str, piece: str) -> None:
    """Four times the text would take sixteen times as long if it were quadratic, each time; what else runs on the
    machine doubles some of the times."""
    longest = (seconds(text, piece, 10_000) for _ in range(3))
    assert any(long < 0.05 or long < 7 * seconds(text, piece, 2_500) for long in longest)
