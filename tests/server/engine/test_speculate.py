"""What is proposed as the next tokens of an answer. That it changes no answer is tested on a real engine."""

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramem.settings import Settings
from server.engine import plugin
from server.engine.extension import WorkerExtension
from server.engine.speculate import (
    ARGUMENT,
    BETWEEN,
    LONGEST_MATCH,
    Drafter,
    configuration,
    continuation,
    packed,
    unpacked,
)

NOTHING = np.array([], dtype=np.int32)
WINDOW = 64


def tokens(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int32)


def drafts(*texts: tuple[int, ...]) -> Any:
    return unpacked(packed(texts), NOTHING)


def test_an_answer_begins_as_a_text_does() -> None:
    assert continuation(drafts((9, 1, 5), (1, 2, 3, 4)), tokens(1), most=8) == [2, 3, 4]


def test_the_longest_match_wins_and_then_the_first() -> None:
    looked_through = drafts((7, 2, 3, 10), (1, 2, 3, 11), (1, 2, 3, 12))
    assert continuation(looked_through, tokens(5, 1, 2, 3), most=1) == [11]


@pytest.mark.parametrize(("answer", "length"), [((50,), 0), ((50, 1), 2), ((50, 1, 2), 3), ((50, 1, 2, 3, 4, 5), 5)])
def test_the_longer_the_match_the_longer_the_proposal(answer: tuple[int, ...], length: int) -> None:
    text = tuple(range(20))
    assert continuation(drafts((99, *text)), tokens(*answer), most=5) == list(text[answer[-1] + 1 :][:length])


def test_nothing_is_proposed_beyond_the_end_of_a_text() -> None:
    looked_through = drafts((1, 2, 3), (4, 5))
    assert continuation(looked_through, tokens(1, 2), most=8) == [3]
    assert continuation(looked_through, tokens(1, 2, 3), most=8) == []


def test_nothing_without_an_answer_or_without_a_match() -> None:
    assert continuation(drafts((1, 2)), NOTHING, most=8) == []
    assert continuation(drafts((1, 2)), tokens(3), most=8) == []
    assert continuation(unpacked(b"", NOTHING), tokens(1), most=8) == []


def test_the_prompt_is_looked_through_after_the_drafts() -> None:
    both = unpacked(packed([(1, 2, 3)]), tokens(1, 2, 4, 5, 6, 7))
    assert continuation(both, tokens(9, 1, 2), most=8) == [3]
    assert continuation(both, tokens(9, 4, 5), most=8) == [6, 7]


def by_hand(looked_through: list[int], answer: list[int], most: int, fewer: int) -> list[int]:
    tail = [BETWEEN, *answer][-LONGEST_MATCH:]
    for matched in range(len(tail), 0, -1):
        for start in range(matched, len(looked_through)):
            if looked_through[start - matched : start] == tail[-matched:]:
                follows = looked_through[start : start + max(0, min(matched + 1 - fewer, most))]
                return follows[: follows.index(BETWEEN)] if BETWEEN in follows else follows
    return []


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(0, 9),
    st.integers(0, 3),
)
def test_it_is_what_looking_for_every_end_finds(
    texts: list[list[int]], answer: list[int], most: int, fewer: int
) -> None:
    looked_through = drafts(*map(tuple, texts))
    found = continuation(looked_through, tokens(*answer), most=most, fewer=fewer)
    assert found == by_hand(looked_through.tolist(), answer, most, fewer)


class Runner:
    """As much of vLLM's as is read: requests of prompt, answer, and the drafts that were sent, if any were."""

    def __init__(self, *requests: Any, max_tokens: int = WINDOW) -> None:
        ids = [str(number) for number in range(len(requests))]
        self.lengths = tokens(*(len(prompt) + len(answer) for prompt, answer, *_ in requests))
        self.tokens = np.zeros((len(requests), WINDOW), dtype=np.int32)
        for row, (prompt, answer, *_) in enumerate(requests):
            self.tokens[row, : self.lengths[row]] = [*prompt, *answer]
        self.input_batch = SimpleNamespace(
            req_ids=ids, num_prompt_tokens=tokens(*(len(prompt) for prompt, *_ in requests))
        )
        self.max_model_len = self.effective_drafter_max_model_len = WINDOW
        self.num_spec_tokens = 8
        sent = [dict(zip([ARGUMENT], rest, strict=False)) for _, _, *rest in requests]
        self.requests = {
            name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=one or None, max_tokens=max_tokens))
            for name, one in zip(ids, sent, strict=True)
        }


def drafter(runner: Runner | None, most: int = 8) -> Drafter:
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=most),
        model_config=SimpleNamespace(max_model_len=WINDOW),
    )
    made = Drafter(config)
    made.load_model(None)
    if runner is not None:
        made.bind(runner)
    return made


def proposed(runner: Runner, sampled: list[list[int]] | None = None, most: int = 8) -> list[list[int]]:
    return drafter(runner, most).propose(sampled or [[1]] * len(runner.requests), runner.lengths, runner.tokens)


TEXT = tuple(range(20, 50))


def test_each_request_is_proposed_what_its_own_drafts_hold() -> None:
    runner = Runner(
        ((1, 2), (20, 21, 22, 23), packed([TEXT])),
        ((20, 21, 22, 30, 31), (20, 21), b""),
        ((20, 21, 22), (20, 21)),
    )
    assert proposed(runner) == [[24, 25, 26, 27], [22, 30], []]


def test_a_request_that_was_not_sampled_is_proposed_nothing() -> None:
    runner = Runner(((1, 2), (20, 21), packed([TEXT])), ((1, 2), (20, 21), packed([TEXT])))
    assert proposed(runner, [[], [21]]) == [[], [22, 23, 24]]


def test_nothing_is_proposed_beyond_the_window() -> None:
    runner = Runner((tuple([1] * (WINDOW - 6)), (20, 21, 22), packed([TEXT])))
    assert proposed(runner) == [[23, 24]]


def test_nothing_is_proposed_beyond_what_was_asked_for() -> None:
    runner = Runner(((1, 2), (20, 21, 22), packed([TEXT])), max_tokens=6)
    assert proposed(runner) == [[23, 24]]


def test_vllm_asks_for_proposals_up_to_the_end_of_the_window() -> None:
    runner = Runner()
    drafter(runner)
    assert runner.effective_drafter_max_model_len >= WINDOW + runner.num_spec_tokens


@pytest.mark.parametrize(("requests", "length"), [(1, 5), (2, 4), (4, 2), (5, 1), (32, 1)])
def test_the_more_run_at_once_the_surer_a_proposal_has_to_be(requests: int, length: int) -> None:
    runner = Runner(*[((1, 2), TEXT[:3], packed([TEXT]))] * requests)
    assert {len(one) for one in proposed(runner)} == {length}


def test_before_it_knows_its_requests_it_proposes_nothing() -> None:
    assert drafter(None).propose([[1], [2]], tokens(3, 3), np.zeros((2, WINDOW), dtype=np.int32)) == [[], []]


def test_warming_up_tells_it_whose_requests_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.freeze", lambda: None)
    runner: Any = Runner(((1, 2), (20, 21), packed([TEXT])))
    runner.drafter = drafter(None)
    worker: Any = WorkerExtension()
    worker.model_runner = runner
    worker.loramem_warm_up()
    assert runner.drafter.propose([[21]], runner.lengths, runner.tokens) == [[22, 23, 24, 25]]


def test_what_is_sent_does_not_come_into_the_log() -> None:
    from vllm import SamplingParams

    plugin.register()
    sent = packed([TEXT])
    shown = repr(SamplingParams(max_tokens=7, extra_args={ARGUMENT: sent}))
    assert "max_tokens=7" in shown
    assert repr(sent) not in shown
    assert f"<{len(sent)} bytes>" in shown
    assert "other" in repr(SamplingParams(extra_args={"other": 1}))


def times_fetched(*running: dict[str, Any] | None, config: Any) -> int:
    """How often vLLM's engine sends for proposals after a step of requests with these arguments."""
    from vllm import SamplingParams
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.request import Request

    plugin.register()
    core: Any = EngineCore.__new__(EngineCore)
    core.check_for_draft_tokens, core.async_scheduling = True, False
    core.vllm_config = SimpleNamespace(speculative_config=config)
    asked = [SamplingParams(max_tokens=1, extra_args=arguments) for arguments in running]
    core.scheduler = SimpleNamespace(running=[Request("name", [1], sampling, None) for sampling in asked])
    core.model_executor = Mock(take_draft_token_ids=Mock(return_value=None))
    core.post_step(True)
    return int(core.model_executor.take_draft_token_ids.call_count)


def proposing(**changed: Any) -> Any:
    """vLLM's own configuration, made of ours."""
    from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig

    found = configuration(Settings(speculative_tokens=3), on_gpu=False)
    assert found is not None
    model = Mock(spec=ModelConfig)
    return SpeculativeConfig(**{**found, **changed}, target_model_config=model, target_parallel_config=ParallelConfig())


def test_proposals_are_sent_for_while_a_request_has_drafts() -> None:
    drafted = {ARGUMENT: packed([TEXT])}
    assert times_fetched(drafted, config=proposing()) == 1
    assert times_fetched(None, {ARGUMENT: b""}, config=proposing()) == 1


def test_nothing_is_sent_for_where_nobody_proposes() -> None:
    assert times_fetched(config=proposing()) == 0
    assert times_fetched(None, {"other": 1}, config=proposing()) == 0


def test_drafters_of_others_are_asked_as_ever() -> None:
    assert times_fetched(None, config=proposing(model="somebody.Else")) == 1
    assert times_fetched(None, config=SimpleNamespace(method="ngram", model="ngram")) == 1


def test_on_a_cpu_answers_are_drafted_and_never_filled_up_to_the_size_of_a_graph() -> None:
    found = configuration(Settings(max_concurrent_requests=5, speculative_tokens=3), on_gpu=False)
    assert found is not None
    module, name = found.pop("model").rsplit(".", 1)
    assert getattr(sys.modules[module], name) is Drafter
    assert found == {
        "method": "custom_class",
        "num_speculative_tokens": 3,
        "num_speculative_tokens_per_batch_size": [(1, 5, 3)],
    }
    assert configuration(Settings(speculative_tokens=0), on_gpu=False) is None
    assert configuration(Settings(), on_gpu=True) is None
