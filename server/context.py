"""Choose the text that goes into the prompt, and build the prompt so that it fits the model's window."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from loramem import prompts
from loramem.database import Database
from loramem.errors import MemoryNotReady, WindowExceeded
from loramem.prompts import Message
from loramem.tables import Revision
from server.ask import Ask, Passage, Prompt, Route, Span
from server.engine.engine import Engine, Sampling

SHORTEN = "shorten the question or the conversation, or ask for fewer max_tokens"


@dataclass(frozen=True)
class FullText:
    """One document's revision, or the beginning of it."""

    document_id: str
    title: str
    text: str


class PromptBuilder:
    """Prompts of every mode, in tokens of the base model; `window` is prompt and answer together."""

    def __init__(self, database: Database, engine: Engine, *, window: int, rag_tokens: int) -> None:
        self._database = database
        self._engine = engine
        self._window = window
        self._rag_tokens = rag_tokens

    def build(self, ask: Ask, route: Route) -> Prompt:
        """Raises `WindowExceeded` with the numbers when prompt and answer do not fit and `truncate` is not set."""
        if ask.context_kind == "rag":
            return self._with_passages(ask, self._within_budget(route.passages))
        if ask.context_kind == "icl":
            return self._with_documents(ask, self._read(_wanted_documents(ask, route), route))
        messages = prompts.closed_book(ask.question) if ask.mode != "base" else _plain(ask.question)
        return self._fitting(ask, messages, ())

    def check_length(self, ask: Ask) -> None:
        """Raises `WindowExceeded` for more characters than a window's tokens can stand for, which nobody need read."""
        characters = sum(map(len, [ask.question, *(message["content"] for message in ask.history)]))
        most = self._window * self._engine.longest_token
        if characters > most:
            raise WindowExceeded(
                f"the conversation has {characters} characters; the model's window of {self._window} tokens has room "
                f"for {most} at the very most",
                key=ask.key,
                value=f"{characters} characters",
                allowed=f"up to {most} characters",
            )

    def plain(self, text: str, sampling: Sampling) -> Prompt:
        """A text to continue, as it is."""
        self.check_length(Ask(text, "base", "", sampling, key="prompt"))
        way_out = "shorten the prompt or ask for fewer max_tokens"
        return self._checked(self._engine.encode_prompt(text), sampling, (), "prompt", way_out)

    def _with_passages(self, ask: Ask, passages: Sequence[Passage]) -> Prompt:
        """As many of the passages, best first, as the window has room for, at least one; in reading order."""
        best_first = list(dict.fromkeys(passage.document_id for passage in passages))

        def built(count: int) -> Prompt:
            some = sorted(passages[:count], key=lambda one: (best_first.index(one.document_id), one.start))
            messages = prompts.with_passages(ask.question, [passage.text for passage in some])
            return Prompt(self._encode(ask, messages), tuple(_span(passage) for passage in some))

        room = self._window - ask.sampling.room
        prompt = built(len(passages))
        if len(prompt.token_ids) > room:
            counts = range(len(passages))  # one stays, though it may not fit
            prompt = built(bisect_right(counts, room, lo=2, key=lambda count: len(built(count).token_ids)) - 1)
        return self._checked(prompt.token_ids, ask.sampling, prompt.spans, ask.key, _way_out(ask))

    def _within_budget(self, passages: Sequence[Passage]) -> list[Passage]:
        """The best passages up to the budget (at least one), best first; of those that say the same the first."""
        chosen: dict[str, Passage] = {}
        left = self._rag_tokens
        for passage in passages:
            said = " ".join(passage.text.split())
            if said in chosen:
                continue
            left -= len(self._engine.encode_text(passage.text))
            if left < 0 and chosen:
                break
            chosen[said] = passage
        return list(chosen.values())

    def _with_documents(self, ask: Ask, texts: Sequence[FullText]) -> Prompt:
        room = self._window - ask.sampling.room
        if ask.truncate and len(self._encode(ask, _document_messages(ask, texts))) > room:
            texts = self._longest_beginning(ask, texts, room)
        spans = tuple(Span(text.document_id, None, 0, len(text.text)) for text in texts)
        return self._fitting(ask, _document_messages(ask, texts), spans)

    def _longest_beginning(self, ask: Ask, texts: Sequence[FullText], room: int) -> list[FullText]:
        """As much of the texts as fits, by bisection: how many tokens the template adds depends on the text.

        Raises `WindowExceeded` where no token of them does.
        """
        empty = len(self._encode(ask, _document_messages(ask, ())))
        if empty >= room:
            raise self._no_room(ask, empty)
        ends = [self._token_ends(text.text) for text in texts]

        def length(tokens: int) -> int:
            return len(self._encode(ask, _document_messages(ask, _beginning(texts, ends, tokens))))

        most = min(room, sum(map(len, ends)))
        beginning = _beginning(texts, ends, bisect_right(range(most + 1), room, lo=1, key=length) - 1)
        if not beginning:
            raise self._no_room(ask, empty)
        return beginning

    def _token_ends(self, text: str) -> list[int]:
        """Character offset after each token."""
        tokens = self._engine.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [end for _, end in tokens["offset_mapping"]]

    def _read(self, document_ids: Sequence[str], route: Route) -> list[FullText]:
        """The same revisions that the route saw."""
        texts = []
        with self._database.read() as session:
            for document_id in document_ids:
                revision = Revision.number == route.revisions[document_id]
                wanted = select(Revision.title, Revision.text).where(Revision.document_id == document_id, revision)
                row = session.execute(wanted).one_or_none()
                if row is None:
                    raise MemoryNotReady(f"document {document_id!r} was replaced or deleted while this was asked")
                texts.append(FullText(document_id, row.title, row.text))
        return texts

    def _encode(self, ask: Ask, messages: list[Message]) -> list[int]:
        return self._engine.encode_chat(_with_history(ask.history, messages))

    def _fitting(self, ask: Ask, messages: list[Message], spans: tuple[Span, ...]) -> Prompt:
        return self._checked(self._encode(ask, messages), ask.sampling, spans, ask.key, _way_out(ask))

    def _checked(
        self, tokens: list[int], sampling: Sampling, spans: tuple[Span, ...], key: str, way_out: str
    ) -> Prompt:
        if len(tokens) + sampling.room > self._window:
            detail = (
                f"the prompt has {len(tokens)} tokens and the answer may have {sampling.room}, together more "
                f"than the model's window of {self._window}; {way_out}"
            )
            raise self._exceeded(detail, len(tokens), sampling, key)
        return Prompt(tokens, spans)

    def _no_room(self, ask: Ask, tokens: int) -> WindowExceeded:
        detail = (
            f"without any text the prompt has {tokens} tokens, and the answer may have {ask.sampling.room}: the "
            f"model's window of {self._window} has no room for a text between them; {SHORTEN}"
        )
        return self._exceeded(detail, tokens, ask.sampling, ask.key)

    def _exceeded(self, detail: str, tokens: int, sampling: Sampling, key: str) -> WindowExceeded:
        return WindowExceeded(
            detail,
            key=key,
            value=f"{tokens} tokens",
            allowed=f"up to {self._window - sampling.room} tokens",
            prompt_tokens=tokens,
            max_tokens=sampling.room,
            window=self._window,
        )


def _beginning(texts: Sequence[FullText], ends: Sequence[Sequence[int]], tokens: int) -> list[FullText]:
    """The first `tokens` tokens of all texts together."""
    kept = []
    for text, offsets in zip(texts, ends, strict=True):
        if tokens > 0 and offsets:
            cut = offsets[min(tokens, len(offsets)) - 1]
            kept.append(FullText(text.document_id, text.title, text.text[:cut]))
        tokens -= len(offsets)
    return kept


def _way_out(ask: Ask) -> str:
    if ask.context_kind != "icl":
        return SHORTEN
    others = "context rag or mode" if ask.mode == "hybrid" else "hybrid,"
    return f"use {others} rag or lora, or POST /query with truncate"


def _wanted_documents(ask: Ask, route: Route) -> list[str]:
    """The documents named that serve, else the best-routed one. Raises `MemoryNotReady` where none is left."""
    if ask.document_ids is None:
        return list(route.documents)[:1]
    named = route.chosen or ask.document_ids
    serving = [document_id for document_id in named if document_id in route.revisions]
    if not serving:
        raise MemoryNotReady("none of the documents named has indexed text yet; ask again when their jobs have ended")
    return serving


def _document_messages(ask: Ask, texts: Sequence[FullText]) -> list[Message]:
    if len(texts) == 1:
        return prompts.with_document(ask.question, texts[0].title, texts[0].text)
    joined = "\n\n".join(f"{text.title}\n{text.text}" for text in texts)
    return prompts.with_document(ask.question, "", joined)


def _plain(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def _with_history(history: Sequence[Message], messages: list[Message]) -> list[Message]:
    """A system prompt stands first; a conversation's own wins over the mode's."""
    system = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    own = bool(history) and history[0]["role"] == "system"
    return [*([] if own else system), *history, *rest]


def _span(passage: Passage) -> Span:
    return Span(passage.document_id, passage.chunk, passage.start, passage.end)
