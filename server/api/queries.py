"""/query: ask the memory."""

import json
import math
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from loramem import tracing
from loramem.prompts import Message
from server.answer import whole
from server.api.common import TheGateway, problems
from server.api.errors import known, problem
from server.api.fields import check_max_tokens
from server.api.schemas import (
    AnswerHead,
    AnswerOut,
    ChoiceOut,
    MergeOut,
    QueryIn,
    RoutedOut,
    SpanOut,
    Timings,
    TokenOut,
    Usage,
)
from server.ask import Ask, Choice, Done, Event, MergeOptions, Prepared, Routed, RoutedAdapter, Token
from server.engine.engine import Sampling
from server.gateway import Gateway
from server.stream import event, sse_response, streamed, while_connected

router = APIRouter(tags=["queries"])


@router.post(
    "/query",
    response_model=AnswerOut,
    responses={
        **problems(404, 409, 413, 415, 500),
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    },
)
async def query(wanted: QueryIn, request: Request, gateway: TheGateway) -> AnswerOut | StreamingResponse:
    """Answer from weights, text or both. With `stream`: events `route`, `token`..., then `done` or `error`.

    With `compose: select`, `route` says which adapter was selected, so it comes only then.
    """
    ask = to_ask(wanted, gateway.settings.max_tokens_limit, gateway.settings.max_model_len)
    answer_id = f"ans_{uuid.uuid4().hex[:26]}"
    events = observed(gateway, ask)
    if not wanted.stream:
        routed, tokens, done = await while_connected(request, whole(events))
        head = _head(answer_id, ask, routed)
        return _answer(head, "".join(token.text for token in tokens), done)
    first = await while_connected(request, anext(events))  # errors before the first byte keep their status
    assert isinstance(first, Routed)
    return sse_response(streamed(_stream(_head(answer_id, ask, first), events), events, _failure))


def to_ask(wanted: QueryIn, max_tokens_limit: int, window: int) -> Ask:
    check_max_tokens("max_tokens", wanted.max_tokens, max_tokens_limit, window)
    turns = [message.model_dump() for message in wanted.messages or ()]
    return Ask(
        key="question" if wanted.messages is None else "messages",
        question=wanted.question if wanted.question is not None else turns[-1]["content"],
        mode=wanted.mode,
        namespace=wanted.namespace,
        sampling=Sampling(wanted.max_tokens, wanted.temperature, wanted.top_p, wanted.seed),
        history=answered(turns[:-1]),
        document_ids=None if wanted.document_ids is None else tuple(dict.fromkeys(wanted.document_ids)),
        top_k=wanted.top_k,
        metadata=wanted.metadata,
        compose=wanted.compose or ("merge" if wanted.merges else "select"),
        merge=MergeOptions(**wanted.merge.model_dump(exclude_none=True)),
        context=wanted.context,
        truncate=wanted.truncate,
    )


def answered(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Without the answers that were broken off before their first word, and without what these were to answer: chat
    templates want turns to alternate."""
    kept: list[Message] = []
    for turn in turns:
        if turn["content"].strip():
            kept.append(turn)
        elif kept and kept[-1]["role"] == "user":
            kept.pop()
    return tuple(kept)


async def observed(gateway: Gateway, ask: Ask) -> AsyncGenerator[Event, None]:
    """The answer's events, noted in the metrics as they pass."""
    with gateway.metrics.query(ask.mode) as noted:
        async with aclosing(gateway.answerer.answer(ask)) as events:
            async for item in events:
                noted.see(item)
                if isinstance(item, Routed):
                    tracing.annotate({"loramem.mode": item.decision.mode, "loramem.refused": item.decision.refuses})
                elif isinstance(item, Done):
                    tracing.annotate(
                        {
                            "gen_ai.usage.input_tokens": item.prompt_tokens,
                            "gen_ai.usage.output_tokens": item.completion_tokens,
                            "gen_ai.response.finish_reasons": [item.finish_reason],
                        }
                    )
                yield item


async def _stream(head: AnswerHead, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    text = ""
    yield event("route", head.model_dump_json())
    async for item in events:
        if isinstance(item, Token):
            text += item.text
            yield event("token", TokenOut(text=item.text).model_dump_json())
        elif isinstance(item, Done):
            yield event("done", _answer(head, text, item).model_dump_json())


def _failure(error: Exception) -> bytes:
    return event("error", json.dumps(problem(known(error))))


def _head(answer_id: str, ask: Ask, routed: Routed) -> AnswerHead:
    selecting = ask.compose == "select" and bool(routed.prepared)
    sure = routed.selection.logprobs if routed.selection else [None] * len(routed.adapters)
    adapters = [_routed_out(adapter, logprob) for adapter, logprob in zip(routed.adapters, sure, strict=True)]
    spans = [SpanOut(document_id=s.document_id, chunk=s.chunk, start=s.start, end=s.end) for s in routed.spans]
    return AnswerHead(
        id=answer_id,
        mode=routed.decision.mode,
        choice=_choice_out(routed.decision.choice),
        refused=routed.decision.refuses,
        compose=ask.compose if routed.prepared else None,
        selected=routed.adapters[routed.winner].adapter_id if selecting else None,
        routed=adapters,
        merge=_merge_out(routed.prepared[0]) if routed.prepared else None,
        context=spans,
    )


def _choice_out(choice: Choice | None) -> ChoiceOut | None:
    if choice is None:
        return None
    return ChoiceOut(
        confidence=choice.confidence, count=choice.count, margin=round(choice.margin, 4), reason=choice.reason
    )


def _routed_out(adapter: RoutedAdapter, logprob: float | None) -> RoutedOut:
    fields = {name: getattr(adapter, name) for name in RoutedOut.model_fields if name != "logprob"}
    said = logprob is not None and math.isfinite(logprob)
    return RoutedOut(**fields, logprob=round(logprob, 4) if said and logprob is not None else None)


def _merge_out(prepared: Prepared) -> MergeOut | None:
    """None for a single adapter at its own strength: nothing was merged."""
    if not prepared.merged:
        return None
    cache: Literal["hit", "miss"] = "hit" if prepared.cache_hit else "miss"
    return MergeOut(method=prepared.recipe.method, recipe=prepared.recipe, cache=cache)


def _answer(head: AnswerHead, text: str, done: Done) -> AnswerOut:
    return AnswerOut(
        **head.model_dump(),
        answer=text.strip(),
        usage=Usage(
            prompt_tokens=done.prompt_tokens,
            completion_tokens=done.completion_tokens,
            total_tokens=done.prompt_tokens + done.completion_tokens,
            dropped_tokens=done.dropped_tokens,
        ),
        timings_ms=Timings(**{stage: round(value, 3) for stage, value in done.timings_ms.items()}),
        finish_reason=done.finish_reason,
    )
