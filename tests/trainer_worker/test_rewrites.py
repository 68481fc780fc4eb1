"""What the writer says in other words is kept only when it says the same."""

import httpx
import pytest

from trainer_worker.rewrites import adds_nothing, keeps_facts, rewrites, summary
from trainer_worker.statements import statements
from trainer_worker.writer import Writer

TEXT = "The harbour of Quillmere was dug by Tobias Wrenfield in 1874. Its lighthouse stands 31 metres high."


def writer_that_says(*replies: str) -> Writer:
    said = iter(replies)

    def answer(request: httpx.Request) -> httpx.Response:
        message = {"message": {"role": "assistant", "content": next(said)}}
        return httpx.Response(200, json={"choices": [message]})

    return Writer("http://writer/v1", "model", concurrency=1, transport=httpx.MockTransport(answer))


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
    facts = statements("Quillmere", TEXT)
    good = "In 1874 Tobias Wrenfield created the port of Quillmere."
    rows = rewrites(facts, writer_that_says(good, *["nonsense about 99 Frogs"] * (len(facts) - 1)), lambda: None)
    assert [(row.answer, row.kind) for row in rows] == [(facts[0].text, "rewrite")]
    assert good in rows[0].question


def test_a_summary_loses_the_sentences_that_invent() -> None:
    rows = summary("Quillmere", TEXT, writer_that_says("Wrenfield dug it. It lies in France."), lambda: None)
    assert [row.answer for row in rows] == ["Wrenfield dug it."]
    assert summary("Quillmere", TEXT, writer_that_says("It lies in France."), lambda: None) == []


def test_numbers_count_wherever_they_stand() -> None:
    assert adds_nothing(TEXT, "31 metres is its height.")
    assert not adds_nothing(TEXT, "32 metres is its height.")
