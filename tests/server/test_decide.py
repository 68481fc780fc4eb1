"""Which mode answers when the question leaves it to the server."""

from dataclasses import replace
from typing import get_args

import pytest

from loramem.records import AskedMode, Mode
from server.ask import Ask, Choice, Confidence, Route, RoutedAdapter
from server.decide import MODES, decide
from server.engine.engine import Sampling

ADAPTER = RoutedAdapter("ada_a", "0" * 64, 16, "doc_a", "title", 0, 0.5, 1.0)


def route(confidence: Confidence, *, weak: bool = False) -> Route:
    choice = Choice(confidence, 1, 0.5, "because")
    return Route((replace(ADAPTER, weak=weak),), (), {}, {}, {}, choice)


def ask(mode: AskedMode) -> Ask:
    return Ask("Why?", mode, "default", Sampling(8))


def test_every_confidence_has_a_mode() -> None:
    assert set(MODES) == set(get_args(Confidence))


@pytest.mark.parametrize(
    ("confidence", "mode", "refuses"),
    [
        ("confident", "lora", False),
        ("unsure", "lora", False),
        ("weak", "hybrid", False),
        ("untrained", "rag", False),
        ("none", "base", True),
    ],
)
def test_the_router_decides_where_it_is_left_to_it(confidence: Confidence, mode: Mode, refuses: bool) -> None:
    decision = decide(ask("auto"), route(confidence))
    assert (decision.mode, decision.refuses) == (mode, refuses)
    assert decision.choice == Choice(confidence, 1, 0.5, "because")


@pytest.mark.parametrize("mode", ["lora", "rag", "icl", "hybrid"])
def test_a_mode_that_was_asked_for_answers_however_sure_the_router_is(mode: Mode) -> None:
    decision = decide(ask(mode), route("none"))
    assert (decision.mode, decision.refuses) == (mode, False)
    assert decision.choice is not None
    assert decision.choice.confidence == "none"


def test_base_was_not_routed() -> None:
    assert decide(ask("base"), route("none")).choice is None


def test_text_stands_beside_an_adapter_that_failed_its_exam() -> None:
    decision = decide(ask("auto"), route("confident", weak=True))
    assert decision.mode == "hybrid"
    assert decision.choice is not None
    assert (decision.choice.confidence, decision.choice.reason) == ("weak", "because, but an adapter failed its exam")


def test_an_adapter_that_failed_and_is_not_called_for_does_not_count() -> None:
    certain = route("confident")
    with_more = replace(certain, adapters=(*certain.adapters, replace(ADAPTER, adapter_id="ada_b", weak=True)))
    assert decide(ask("auto"), with_more) == decide(ask("auto"), certain)


@pytest.mark.parametrize(
    ("mode", "confidence"), [("lora", "weak"), ("hybrid", "weak"), ("rag", "confident"), ("icl", "confident")]
)
def test_an_adapter_that_failed_its_exam_is_told_of_where_adapters_answer(mode: Mode, confidence: Confidence) -> None:
    decision = decide(ask(mode), route("confident", weak=True))
    assert decision.mode == mode
    assert decision.choice is not None
    assert decision.choice.confidence == confidence
    assert ("failed its exam" in decision.choice.reason) is (confidence == "weak")
