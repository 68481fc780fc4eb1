"""Mode `auto`: what answers a question, by how sure the router is of what is stored."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace

from loramem.records import Mode
from server.ask import Ask, Confidence, Decision, Done, Event, Route, Routed, Token

UNKNOWN = "I do not know: nothing stored is about this."
"""Not generated: a small model that is told to say so goes on to invent (decision 0014)."""
NOT_READ = "I do not know: nothing read so far is about this, and {unread} more {documents} to be read."
MODES: Mapping[Confidence, Mode] = {
    "confident": "lora",
    "unsure": "lora",
    "weak": "hybrid",
    "untrained": "rag",
    "none": "base",
}


def decide(ask: Ask, route: Route) -> Decision:
    """The mode asked for; of `auto`, the one that the route calls for."""
    if ask.mode == "base":
        return Decision("base")
    choice = route.choice
    failed = any(adapter.weak for adapter in route.adapters[: choice.count])
    if failed and choice.confidence in ("confident", "unsure") and ask.mode not in ("rag", "icl"):
        choice = replace(choice, confidence="weak", reason=f"{choice.reason}, but an adapter failed its exam")
    if ask.mode != "auto":
        return Decision(ask.mode, choice)
    if choice.confidence == "none" and route.chosen is not None:
        choice = replace(choice, confidence="weak", reason=f"{choice.reason}, but its documents were chosen")
        return Decision("hybrid" if route.adapters else "rag", choice)
    return Decision(MODES[choice.confidence], choice, refuses=choice.confidence == "none")


async def refuse(decision: Decision, timings_ms: Mapping[str, float]) -> AsyncGenerator[Event, None]:
    """Say that nothing is known, or not yet; events as of an answer."""
    documents = "document is" if decision.unread == 1 else "documents are"
    yield Routed(decision)
    yield Token(NOT_READ.format(unread=decision.unread, documents=documents) if decision.unread else UNKNOWN)
    yield Done("stop", 0, 0, timings_ms)
