"""What is refused because the engine has too few slots for it."""

from dataclasses import replace

import pytest

from loramem.errors import InvalidValue
from loramem.records import Compose, Mode
from server.ask import Ask, Route, RoutedAdapter
from server.engine.engine import Sampling
from server.select import check_slots

ASK = Ask("Who?", "lora", "library", Sampling(16), compose="select")


def route_to(count: int) -> Route:
    adapters = [RoutedAdapter(f"ada_{n}", "0" * 64, 8, "doc", "", n, 0.5, 1 / count) for n in range(count)]
    return Route(tuple(adapters), (), {}, {}, {})


def test_more_candidates_than_slots_are_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidValue, match=r"3 adapters .* has 2; use a smaller top_k.* LORAMEM_MAX_LORAS") as refused:
        check_slots(replace(ASK, top_k=3), route_to(3), slots=2)
    assert refused.value.extra == {"key": "top_k", "value": 3, "allowed": "1 to 2"}


@pytest.mark.parametrize(("mode", "compose"), [("lora", "merge"), ("rag", "select"), ("base", "select")])
def test_what_runs_as_one_row_needs_one_slot(mode: Mode, compose: Compose) -> None:
    check_slots(replace(ASK, top_k=3, mode=mode, compose=compose), route_to(3), slots=1)
    check_slots(replace(ASK, top_k=3), route_to(2), slots=2)  # fewer were found
