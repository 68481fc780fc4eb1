"""The bar at a terminal, which here is a string."""

import logging
import sys
from io import StringIO

import pytest

from loramem.logs import LineFormatter
from loramem.queue import Claim
from loramem.records import Progress
from trainer_worker.bar import bar, words

CLAIM = Claim("job_1", "build", "doc_1", 1, 1, 1, "w")
TRAINING = Progress(phase="train", step=32, total_steps=75, percent=43, loss=0.4123, eta_s=200, message="chunk 2 of 5")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> list[str]:
        """Its lines, each as the last writing over it left it."""
        return [line.split("\r")[-1].rstrip() for line in self.getvalue().split("\n")]


def test_the_bar_says_what_progress_said() -> None:
    terminal = Terminal()
    with bar(terminal, CLAIM) as show:
        assert terminal.screen[-1].startswith("  0%|")
        show(Progress(phase="chunk"))
        show(TRAINING)
        [line] = terminal.screen
    percent, drawn, said = line.split("|")
    assert percent == " 43%"
    assert len(drawn) == 20
    assert len(drawn.rstrip()) == 9
    assert said == " job_1: train 32/75, chunk 2 of 5, loss 0.412, 03:20 left"
    assert terminal.screen == [""]  # and nothing is left of it


def test_what_is_not_known_is_not_said() -> None:
    assert words(Progress(phase="chunk")) == "chunk"
    assert words(Progress(phase="index", step=1, total_steps=2)) == "index 1/2"


def test_log_lines_stand_whole_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    handler.setFormatter(LineFormatter("worker"))
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with bar(terminal, CLAIM) as show:
        show(TRAINING)
        logging.getLogger("trainer_worker.test").warning("the writer is slow")
        above, below = terminal.screen
    assert above.endswith("WARNING worker trainer_worker.test: the writer is slow")
    assert below.startswith(" 43%|")
    assert logging.root.handlers == [handler]


def test_nothing_is_drawn_where_no_terminal_is() -> None:
    pipe = StringIO()
    with bar(pipe, CLAIM) as show:
        show(TRAINING)
    assert pipe.getvalue() == ""


def test_the_bar_goes_when_the_job_fails() -> None:
    terminal = Terminal()
    with pytest.raises(ZeroDivisionError), bar(terminal, CLAIM):
        raise ZeroDivisionError
    assert terminal.screen == [""]
