"""What vLLM is asked for, and how its outputs are read, on an engine that only notes."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError

from loramem.base_model import BaseModel
from loramem.errors import EngineUnavailable
from loramem.settings import Settings
from server.engine.engine import Engine


class Noting:
    """In the place of `AsyncLLM`: a token has the log-probability of its place, times -0.5."""

    def __init__(self) -> None:
        self.errored = False
        self.asked: list[tuple[dict[str, Any], Any, Any]] = []
        self.closed = 0
        self.error: Exception | None = None

    async def generate(
        self, inputs: dict[str, Any], params: Any, request_id: str, *, lora_request: Any = None
    ) -> AsyncGenerator[Any, None]:
        self.asked.append((inputs, params, lora_request))
        if self.error is not None:
            raise self.error
        (token,) = params.allowed_token_ids
        logprob = SimpleNamespace(logprob=-0.5 * len(inputs["prompt_token_ids"]))
        try:
            yield SimpleNamespace(outputs=[SimpleNamespace(logprobs=[{token: logprob}])])
        finally:
            self.closed += 1


def engine_of(llm: Noting) -> Engine:
    engine = Engine(Settings(), BaseModel(Path("nowhere"), "noting", "f" * 64))
    engine._llm = llm
    return engine


def test_a_score_is_of_the_continuations_own_tokens_by_the_base_model_alone() -> None:
    llm = Noting()
    assert asyncio.run(engine_of(llm).score([7, 8, 9], [5, 6], salt="library")) == [-1.5, -2.0]
    assert [inputs["prompt_token_ids"] for inputs, _, _ in llm.asked] == [[7, 8, 9], [7, 8, 9, 5]]
    assert [params.allowed_token_ids for _, params, _ in llm.asked] == [[5], [6]]
    for inputs, params, lora_request in llm.asked:
        assert (inputs["cache_salt"], lora_request) == ("library", None)
        assert (params.max_tokens, params.logprobs, params.output_kind) == (1, 0, RequestOutputKind.FINAL_ONLY)
        assert not params.skip_reading_prefix_cache
    assert llm.closed == 2


def test_an_engine_that_dies_while_it_scores_is_unavailable() -> None:
    llm = Noting()
    llm.error = EngineDeadError()
    with pytest.raises(EngineUnavailable):
        asyncio.run(engine_of(llm).score([1], [2]))


def test_slots_are_as_many_as_the_settings_say() -> None:
    assert Engine(Settings(max_loras=3), BaseModel(Path("nowhere"), "noting", "f" * 64)).slots == 3
