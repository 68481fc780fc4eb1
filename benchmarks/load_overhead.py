"""What the gateway adds to a bare vLLM with the same adapter: the same questions to both, one at a time and in turn.

The gateway is asked closed book for one document's adapter, the engine for that adapter by name, with the messages that
the gateway builds. Few documents are asked about, and all of them before, so that both sides hold the adapters. Their
prompts must have the same number of tokens, or the two did different work.

A gateway that drafts its answers does so here too, which a stock engine does not, and no overhead would show in whole
answers that take half the steps. Where a side drafted while it was asked, they stand as `e2e_ms_with_drafts` and are
not judged. With a temperature the gateway drafts nothing, so that as many pairs are asked again with one so low that
answers are nearly the greedy ones, and the same seed: `without_drafts` has the figures of these, whose whole answers
are `e2e_ms`, like for like, and judged.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.circumstances import check
from benchmarks.intervals import percentile
from benchmarks.load_client import Ask, Reply
from benchmarks.load_plan import Planned
from benchmarks.load_sides import ENGINE, GATEWAY, Sides, Tell
from loramem.client import Json

AskAdapter = Callable[[str, Planned], Awaitable[Reply]]
"""The engine, by the adapter's id."""
DOCUMENTS = 4
"""Fewer than an engine has slots, so that no adapter is loaded while the clock runs."""
BOUND_MS = 15.0


class NotComparable(Exception):
    """Says what the two sides do not have in common, or which of them did not answer."""


@dataclass(frozen=True)
class Pair:
    """One question to both sides, both answered."""

    gateway: Reply
    engine: Reply


@dataclass(frozen=True)
class Compared:
    """`told`: what the sides are, and what they drafted for these pairs."""

    pairs: Sequence[Pair]
    told: Sides


async def measure_overhead(
    gateway: Ask, engine: AskAdapter, questions: Sequence[Planned], pairs: int, tell: Tell
) -> Compared:
    """`pairs` pairs; each second one begins with the engine. Raises `NotComparable`."""
    adapters = {one: await _warm_up(gateway, engine, one) for one in questions}
    before = await tell()
    found = await _ask_in_turn(gateway, engine, adapters, pairs)
    return Compared(found, {side: now.since(before[side]) for side, now in (await tell()).items()})


async def _ask_in_turn(gateway: Ask, engine: AskAdapter, adapters: Mapping[Planned, str], pairs: int) -> list[Pair]:
    found, questions = [], list(adapters)
    for number in range(pairs):
        asked = questions[number % len(questions)]
        if number % 2:
            of_engine = await engine(adapters[asked], asked)
            of_gateway = await gateway(asked)
        else:
            of_gateway = await gateway(asked)
            of_engine = await engine(adapters[asked], asked)
        found.append(_checked(Pair(of_gateway, of_engine), adapters[asked]))
    return found


async def _warm_up(gateway: Ask, engine: AskAdapter, asked: Planned) -> str:
    """The id of the adapter that answers the question; both sides hold it then."""
    reply = await gateway(asked)
    if reply.error or len(reply.adapters) != 1:
        raise NotComparable(f"gateway: {reply.error or f'{len(reply.adapters)} adapters routed, not one'}")
    (adapter_id,) = reply.adapters
    _checked(Pair(reply, await engine(adapter_id, asked)), adapter_id)
    return adapter_id


def _checked(pair: Pair, adapter_id: str) -> Pair:
    for side, reply in ((GATEWAY, pair.gateway), (ENGINE, pair.engine)):
        if reply.error or not reply.tokens:
            raise NotComparable(f"{side}: {reply.error or 'an answer without a token'}")
    if pair.gateway.adapters != (adapter_id,):
        raise NotComparable(f"the gateway routed to {', '.join(pair.gateway.adapters)}, the engine took {adapter_id}")
    if pair.gateway.prompt_tokens != pair.engine.prompt_tokens:
        raise NotComparable(
            f"the gateway's prompt has {pair.gateway.prompt_tokens} tokens, the engine's {pair.engine.prompt_tokens}"
        )
    return pair


def overhead_figures(greedy: Compared, sampled: Compared) -> dict[str, Any]:
    """Those of the greedy pairs, and of the others as `without_drafts`."""
    return _figures(greedy) | {"without_drafts": _figures(sampled)}


def _figures(compared: Compared) -> dict[str, Any]:
    """Milliseconds. Whole answers are compared where both have the same number of tokens."""
    pairs, drafted = compared.pairs, {side: told.drafted for side, told in compared.told.items()}
    whole = "e2e_ms_with_drafts" if any(drafted.values()) else "e2e_ms"
    alike = [one for one in pairs if one.gateway.completion_tokens == one.engine.completion_tokens]
    same = sum(one.gateway.answer == one.engine.answer for one in pairs)
    return {
        "pairs": len(pairs),
        "same_answers": round(same / len(pairs), 4),
        "pairs_of_one_length": len(alike),
        "prompt_tokens": pairs[0].gateway.prompt_tokens,
        "ttft_ms": _sides(pairs, _ttft_ms),
        whole: _sides(alike, _e2e_ms) if alike else None,
        "drafted_tokens": drafted,
    }


def overhead_checks(found: Json) -> list[Json]:
    """Of the paired differences' medians; none of whole answers that were drafted."""
    judged = {
        "TTFT": found["ttft_ms"],
        "whole answer": found.get("e2e_ms"),
        "whole answer without drafts": found["without_drafts"].get("e2e_ms"),
    }
    medians = {kind: sides["difference"]["p50"] for kind, sides in judged.items() if sides is not None}
    return [
        check(f"overhead p50, {kind}", value, f"<= {BOUND_MS:g} ms", value <= BOUND_MS)
        for kind, value in medians.items()
    ]


def _sides(pairs: Sequence[Pair], ms: Callable[[Reply], float]) -> dict[str, dict[str, float]]:
    gateway, engine = [ms(one.gateway) for one in pairs], [ms(one.engine) for one in pairs]
    differences = [ms(one.gateway) - ms(one.engine) for one in pairs]
    return {GATEWAY: _percentiles(gateway), ENGINE: _percentiles(engine), "difference": _percentiles(differences)}


def _percentiles(ms: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": round(percentile(ms, percent), 2) for percent in (50, 95)}


def _ttft_ms(reply: Reply) -> float:
    return (reply.tokens[0] - reply.sent) * 1000


def _e2e_ms(reply: Reply) -> float:
    return (reply.ended - reply.sent) * 1000
