"""What goes into the prompt, with the real tokenizer: budgets, order, windows, cuts, conversations."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete

from loramem import prompts
from loramem.database import Database
from loramem.errors import MemoryNotReady, WindowExceeded
from loramem.migrate import migrate
from loramem.tables import Document, Revision
from server.ask import Ask, Passage, Prompt, Route, Span
from server.context import PromptBuilder
from server.engine.engine import Sampling
from tests.rows import add_document
from tests.server.scripted_engine import ScriptedEngine

QUESTION = "Who built the Dravona engine?"
SENTENCES = [
    f"Fact number {n} is that valve {n} of the engine was cast by Lisbet Okonjo in Tarnwick. " for n in range(60)
]
TEXT = "".join(SENTENCES)
WINDOW = 400


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path_factory.mktemp('context') / 'loramem.db'}")
    migrate(opened)
    add_document(opened, "doc_long", TEXT)
    add_document(opened, "doc_short", SENTENCES[0])
    add_document(opened, "doc_gone", "Soon deleted.")
    yield opened
    opened.close()


@pytest.fixture
def engine(tokenizer: Any) -> ScriptedEngine:
    made = ScriptedEngine(tokenizer)
    made._tokenizer = tokenizer
    return made


@pytest.fixture
def builder(database: Database, engine: ScriptedEngine) -> PromptBuilder:
    return PromptBuilder(database, engine, window=WINDOW, rag_tokens=100)


def ask(mode: str, **changed: Any) -> Ask:
    return Ask(QUESTION, mode, "default", Sampling(max_tokens=64), **changed)  # type: ignore[arg-type]


def passage(number: int, document_id: str = "doc_long") -> Passage:
    start = TEXT.index(SENTENCES[number])
    return Passage(document_id, 1, 0, start, start + len(SENTENCES[number]), SENTENCES[number], "Title", 0.9)


def route(*passages: Passage, documents: tuple[str, ...] = ("doc_long",)) -> Route:
    return Route((), passages, dict.fromkeys(documents, 0.9), dict.fromkeys(documents, 1), {})


def text_of(engine: ScriptedEngine, prompt: Prompt) -> str:
    return str(engine.tokenizer.decode(prompt.token_ids))


def spans(prompt: Prompt) -> list[tuple[str, int, int]]:
    return [(span.document_id, span.start, span.end) for span in prompt.spans]


# rag


def test_passages_fill_the_budget_best_first_and_are_read_in_their_order(
    builder: PromptBuilder, engine: ScriptedEngine
) -> None:
    best_first = [passage(n) for n in (7, 2, 9, 4, 1, 8)]
    prompt = builder.build(ask("rag"), route(*best_first))
    kept = [p for p in best_first if SENTENCES[SENTENCES.index(p.text)].strip() in text_of(engine, prompt)]
    assert 2 <= len(kept) < len(best_first)
    assert kept == best_first[: len(kept)]  # the best ones
    tokens = sum(len(engine.encode_text(p.text)) for p in kept)
    assert tokens <= 100 < tokens + len(engine.encode_text(best_first[len(kept)].text))
    assert [span[1] for span in spans(prompt)] == sorted(p.start for p in kept)
    text = text_of(engine, prompt)
    places = [text.index(TEXT[start:end].strip()) for _, start, end in spans(prompt)]
    assert places == sorted(places)


def test_the_best_passage_is_kept_whatever_its_length(database: Database, engine: ScriptedEngine) -> None:
    small = PromptBuilder(database, engine, window=WINDOW, rag_tokens=5)
    assert len(small.build(ask("rag"), route(passage(3), passage(4))).spans) == 1


def test_passages_that_say_the_same_are_given_once(builder: PromptBuilder) -> None:
    again = replace(passage(3, "doc_copy"), text=SENTENCES[3].replace(" ", "\n  "))
    prompt = builder.build(ask("rag"), route(passage(3), again, passage(4)))
    assert spans(prompt) == [(found.document_id, found.start, found.end) for found in (passage(3), passage(4))]


def test_the_worst_passages_make_way_until_prompt_and_answer_fit(database: Database, engine: ScriptedEngine) -> None:
    generous = PromptBuilder(database, engine, window=WINDOW, rag_tokens=10 * WINDOW)
    best_first = [passage(n) for n in range(40, 0, -1)]
    prompt = generous.build(ask("rag"), route(*best_first))
    kept = len(prompt.spans)
    assert spans(prompt) == [("doc_long", one.start, one.end) for one in reversed(best_first[:kept])]
    assert len(prompt.token_ids) + 64 <= WINDOW
    one_more = [one.text for one in reversed(best_first[: kept + 1])]
    assert len(engine.encode_chat(prompts.with_passages(QUESTION, one_more))) + 64 > WINDOW


def test_more_characters_than_any_window_holds_are_refused_unread(
    builder: PromptBuilder, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = WINDOW * engine.longest_token
    builder.check_length(replace(ask("lora"), question="a" * most))
    long = replace(ask("lora"), question="a", history=({"role": "user", "content": "a" * most},))
    monkeypatch.setattr(ScriptedEngine, "encode_chat", lambda *_: pytest.fail("read"))
    with pytest.raises(WindowExceeded, match=f"{most + 1} characters"):
        builder.check_length(long)
    monkeypatch.setattr(ScriptedEngine, "encode_prompt", lambda *_: pytest.fail("read"))
    with pytest.raises(WindowExceeded):
        builder.plain("a" * (most + 1), Sampling(4))


def test_one_passage_is_kept_and_refused_where_it_does_not_fit(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    alone = len(engine.encode_chat(prompts.with_passages(QUESTION, [SENTENCES[3]])))
    wanted = Ask(QUESTION, "rag", "default", Sampling(WINDOW - alone + 1))
    with pytest.raises(WindowExceeded) as refused:
        builder.build(wanted, route(passage(3), passage(4)))
    assert refused.value.extra["prompt_tokens"] == alone


def test_passages_of_one_document_stand_together_the_best_document_first(builder: PromptBuilder) -> None:
    mixed = [passage(5, "doc_b"), passage(2, "doc_a"), passage(1, "doc_b")]
    prompt = builder.build(ask("rag"), route(*mixed))
    assert [document for document, _, _ in spans(prompt)] == ["doc_b", "doc_b", "doc_a"]
    assert [start for _, start, _ in spans(prompt)][:2] == [mixed[2].start, mixed[0].start]


def test_spans_name_chunk_and_place(builder: PromptBuilder) -> None:
    found = passage(3)
    assert builder.build(ask("rag"), route(found)).spans == (Span("doc_long", 0, found.start, found.end),)


def test_hybrid_reads_what_its_context_says(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    short = route(passage(0), documents=("doc_short",))
    with_passages = builder.build(ask("hybrid"), short)
    with_document = builder.build(ask("hybrid", context="icl"), short)
    assert with_passages.spans[0].chunk == 0
    assert with_document.spans[0].chunk is None
    assert with_passages == builder.build(ask("rag"), short)
    assert with_document == builder.build(ask("icl"), short)


# icl


def test_a_document_that_fits_is_read_whole(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    prompt = builder.build(ask("icl"), route(documents=("doc_short",)))
    assert spans(prompt) == [("doc_short", 0, len(SENTENCES[0]))]
    assert SENTENCES[0].strip() in text_of(engine, prompt)
    assert "Title of doc_short" in text_of(engine, prompt)


def test_the_best_routed_document_is_read_unless_some_are_named(builder: PromptBuilder) -> None:
    both = route(documents=("doc_short", "doc_long"))
    assert [s.document_id for s in builder.build(ask("icl"), both).spans] == ["doc_short"]
    named = ask("icl", document_ids=("doc_short", "doc_long"), truncate=True)
    assert [s.document_id for s in builder.build(named, both).spans] == ["doc_short", "doc_long"]


def test_over_the_window_is_refused_with_the_numbers(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    with pytest.raises(WindowExceeded) as refused:
        builder.build(ask("icl"), route())
    extra = refused.value.extra
    messages = prompts.with_document(QUESTION, "Title of doc_long", TEXT)
    assert extra["prompt_tokens"] == len(engine.encode_chat(messages))
    assert (extra["max_tokens"], extra["window"]) == (64, WINDOW)
    assert (extra["key"], extra["allowed"]) == ("question", f"up to {WINDOW - 64} tokens")
    for part in (str(extra["prompt_tokens"]), "64", str(WINDOW), "truncate"):
        assert part in refused.value.detail


@pytest.mark.parametrize("max_tokens", [1, 64, 250])
def test_truncate_keeps_as_much_of_the_beginning_as_fits(
    builder: PromptBuilder, engine: ScriptedEngine, max_tokens: int
) -> None:
    wanted = Ask(QUESTION, "icl", "default", Sampling(max_tokens), truncate=True)
    prompt = builder.build(wanted, route())
    assert WINDOW - max_tokens - 10 <= len(prompt.token_ids) <= WINDOW - max_tokens
    ((_, start, end),) = spans(prompt)
    assert start == 0
    assert " ".join(TEXT[:end].split()) in " ".join(text_of(engine, prompt).split())  # a sentence a line
    assert QUESTION in text_of(engine, prompt)


def test_truncate_cuts_the_last_document_first(builder: PromptBuilder) -> None:
    wanted = ask("icl", document_ids=("doc_short", "doc_long"), truncate=True)
    prompt = builder.build(wanted, route(documents=("doc_short", "doc_long")))
    assert spans(prompt)[0] == ("doc_short", 0, len(SENTENCES[0]))
    assert spans(prompt)[1][2] < len(TEXT)
    other_way = ask("icl", document_ids=("doc_long", "doc_short"), truncate=True)
    only_long = builder.build(other_way, route(documents=("doc_long", "doc_short")))
    assert [document for document, _, _ in spans(only_long)] == ["doc_long"]


def test_a_question_that_leaves_no_room_is_refused_even_with_truncate(builder: PromptBuilder) -> None:
    endless = Ask(TEXT, "icl", "default", Sampling(max_tokens=64), truncate=True)
    with pytest.raises(WindowExceeded, match="has no room for a text") as refused:
        builder.build(endless, route())
    assert "truncate" not in refused.value.detail
    assert refused.value.extra["prompt_tokens"] > WINDOW


def test_a_text_is_never_cut_to_nothing(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    bare = len(engine.encode_chat(prompts.with_document(QUESTION, "", "")))
    wanted = Ask(QUESTION, "icl", "default", Sampling(max_tokens=WINDOW - bare), truncate=True)
    with pytest.raises(WindowExceeded, match=f"without any text the prompt has {bare} tokens"):
        builder.build(wanted, route())


def test_hybrid_over_the_window_is_not_sent_to_hybrid(builder: PromptBuilder) -> None:
    with pytest.raises(WindowExceeded, match="use context rag or mode rag or lora, or POST /query with truncate"):
        builder.build(ask("hybrid", context="icl"), route())


def test_of_the_documents_named_those_are_read_that_are_indexed(builder: PromptBuilder) -> None:
    """As happens in mode auto, for which one of them is enough."""
    found = route(documents=("doc_short",))
    named = builder.build(ask("icl", document_ids=("doc_pending", "doc_short")), found)
    assert [document for document, _, _ in spans(named)] == ["doc_short"]
    with pytest.raises(MemoryNotReady, match="none of the documents named has indexed text yet"):
        builder.build(ask("icl", document_ids=("doc_pending",)), found)


def test_a_revision_that_went_away_meanwhile_is_said_so(builder: PromptBuilder, database: Database) -> None:
    gone = route(documents=("doc_gone",))
    builder.build(ask("icl"), gone)
    with database.write() as session:
        session.execute(delete(Document).where(Document.id == "doc_gone"))
        session.execute(delete(Revision).where(Revision.document_id == "doc_gone"))
    with pytest.raises(MemoryNotReady, match="replaced or deleted"):
        builder.build(ask("icl"), gone)


# closed book, base, conversations


def test_closed_book_is_what_the_trainer_trains_on(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    prompt = builder.build(ask("lora"), route(passage(0)))
    assert prompt.token_ids == engine.encode_chat(prompts.closed_book(QUESTION))
    assert prompt.spans == ()


def test_base_gets_the_question_alone(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    prompt = builder.build(ask("base"), route(passage(0)))
    assert prompt.token_ids == engine.encode_chat([{"role": "user", "content": QUESTION}])


HISTORY = ({"role": "user", "content": "Good morning."}, {"role": "assistant", "content": "Good morning to you."})


def test_history_comes_before_the_question(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    text = text_of(engine, builder.build(ask("rag", history=HISTORY), route(passage(0))))
    places = [text.index(part) for part in ("Good morning.", "Good morning to you.", SENTENCES[0].strip(), QUESTION)]
    assert places == sorted(places)


def test_the_system_prompt_comes_before_the_history(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    prompt = builder.build(ask("lora", history=HISTORY), route())
    system, user = prompts.closed_book(QUESTION)
    assert prompt.token_ids == engine.encode_chat([system, *HISTORY, user])


def test_a_conversations_own_system_prompt_wins(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    own = ({"role": "system", "content": "Speak like a captain."}, *HISTORY)
    text = text_of(engine, builder.build(ask("lora", history=own), route()))
    assert "Speak like a captain." in text
    assert prompts.CLOSED_BOOK_SYSTEM not in text
    assert text.count("<|im_start|>system") == 1


def test_a_long_conversation_is_refused_with_another_way_out_than_a_long_document(builder: PromptBuilder) -> None:
    long = ({"role": "user", "content": TEXT}, HISTORY[1])
    with pytest.raises(WindowExceeded, match="shorten the question or the conversation") as refused:
        builder.build(ask("lora", history=long), route())
    assert "truncate" not in refused.value.detail


def test_a_text_to_continue_stands_alone(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    assert builder.plain("Once upon a time", Sampling(4)).token_ids == engine.encode_prompt("Once upon a time")
    with pytest.raises(WindowExceeded, match="shorten the prompt"):
        builder.plain(TEXT, Sampling(4))


def test_an_answer_that_nobody_limited_needs_no_more_room_than_the_least(
    builder: PromptBuilder, engine: ScriptedEngine
) -> None:
    tokens = len(engine.encode_prompt("Once upon a time"))
    assert builder.plain("Once upon a time", Sampling(WINDOW, least_tokens=WINDOW - tokens)).token_ids
    with pytest.raises(WindowExceeded, match=f"the answer may have {WINDOW - tokens + 1}, together more"):
        builder.plain("Once upon a time", Sampling(WINDOW, least_tokens=WINDOW - tokens + 1))


def test_prompt_and_answer_may_fill_the_window_exactly(builder: PromptBuilder, engine: ScriptedEngine) -> None:
    tokens = len(engine.encode_prompt("Once upon a time"))
    assert len(builder.plain("Once upon a time", Sampling(WINDOW - tokens)).token_ids) == tokens
    with pytest.raises(WindowExceeded):
        builder.plain("Once upon a time", Sampling(WINDOW - tokens + 1))
