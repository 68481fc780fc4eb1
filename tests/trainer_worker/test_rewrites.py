"""What the writer says in other words is kept only when it says the same."""

import json

import httpx
import pytest

from trainer_worker.asking import Asking
from trainer_worker.blocks import plain
from trainer_worker.questions import speaks_of_text
from trainer_worker.rewrites import SUMMARIES, adds_nothing, keeps_facts, rewrites, summaries
from trainer_worker.statements import statements
from trainer_worker.writer import Writer

TEXT = "The harbour of Quillmere was dug by Tobias Wrenfield in 1874. The lighthouse stands 31 metres high."


GOOD = "In 1874 Tobias Wrenfield created the port of Quillmere."


def writer_that_says(*replies: str, asked: list[dict[str, object]] | None = None) -> Asking:
    said = iter(replies)

    def answer(request: httpx.Request) -> httpx.Response:
        if asked is not None:
            asked.append(json.loads(request.content))
        message = {"message": {"role": "assistant", "content": next(said)}}
        return httpx.Response(200, json={"choices": [message]})

    by = Writer("http://writer/v1", "model", most_at_once=1, transport=httpx.MockTransport(answer))
    return Asking(by, lambda answered, planned: None, seed=0)


@pytest.mark.parametrize(
    ("other", "kept"),
    [
        ("In 1874 Tobias Wrenfield created the port of Quillmere.", True),
        ("The harbour of Quillmere was dug by Tobias Wrenfield in 1874.", False),  # a copy
        ("In 1847 Tobias Wrenfield created the port of Quillmere.", False),  # another year
        ("Somebody created the port of Quillmere in 1874.", False),  # a name is lost
        ("In 1874 Tobias Wrenfield and Anna Bell created Quillmere.", False),  # a name is new
        ("", False),
    ],
)
def test_a_rewrite_keeps_every_name_and_number(other: str, kept: bool) -> None:
    assert keeps_facts("The harbour of Quillmere was dug by Tobias Wrenfield in 1874.", other) is kept


def test_rewrites_lead_to_the_statement_itself() -> None:
    facts = statements("Quillmere", plain(TEXT))
    rows = rewrites(facts, writer_that_says(GOOD, *["nonsense about 99 Frogs"] * (len(facts) - 1)))
    assert [(row.answer, row.kind) for row in rows] == [(facts[0].text, "rewrite")]
    assert GOOD in rows[0].question


def test_passes_after_the_first_are_sampled_otherwise_and_repeats_go() -> None:
    facts = statements("Quillmere", plain(TEXT))[:1]
    asked: list[dict[str, object]] = []
    other = "Tobias Wrenfield excavated the Quillmere port in 1874."
    rows = rewrites(facts, writer_that_says(GOOD, other, GOOD.upper(), GOOD, asked=asked), passes=4)
    assert [row.question.split(": ", 1)[1] for row in rows] == [GOOD, other]
    assert [body["temperature"] for body in asked] == [0.0, 0.7, 0.7, 0.7]
    assert len({str(body["messages"]) for body in asked}) == 4
    assert len({body.get("seed") for body in asked}) == 4


def test_a_summary_loses_the_sentences_that_invent() -> None:
    rows = summaries("Quillmere", TEXT, writer_that_says("Wrenfield dug it. It lies in France."))
    assert [row.answer for row in rows] == ["Wrenfield dug it."]
    assert summaries("Quillmere", TEXT, writer_that_says("It lies in France.")) == []


def test_so_many_different_summaries_each_for_its_own_request() -> None:
    asked: list[dict[str, object]] = []
    replies = ["Wrenfield dug it.", "It is 31 metres high.", "wrenfield dug it.", "It lies in France."]
    rows = summaries("Quillmere", TEXT, writer_that_says(*replies, asked=asked), 4)
    assert [row.answer for row in rows] == replies[:2]
    assert len({row.question for row in rows}) == 2
    assert all("Quillmere" in row.question for row in rows)
    assert [body["temperature"] for body in asked] == [0.0, 0.7, 0.7, 0.7]


def test_one_sentence_is_kept_where_one_was_asked_for() -> None:
    rows = summaries("Quillmere", TEXT, writer_that_says("It is old.", "Wrenfield dug it. It is 31 metres high."), 2)
    assert [row.answer for row in rows] == ["It is old.", "Wrenfield dug it."]


def test_without_a_title_there_is_one_request_and_one_summary() -> None:
    rows = summaries("", TEXT, writer_that_says("It is old.", "Wrenfield dug it."), 2)
    assert [(row.question, row.answer) for row in rows] == [("Summarise the text.", "It is old.")]


def test_no_request_speaks_of_a_text_at_hand() -> None:
    assert not [request for request, _, _ in SUMMARIES if speaks_of_text(request.format("Quillmere"))]


def test_numbers_count_wherever_they_stand() -> None:
    assert adds_nothing(TEXT, "31 metres is its height.")
    assert not adds_nothing(TEXT, "32 metres is its height.")
