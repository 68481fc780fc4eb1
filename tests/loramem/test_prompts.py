"""Prompts are the contract between training and serving: their order and shape decide what an adapter was taught."""

import pytest

from loramem import prompts


def content(messages: list[prompts.Message]) -> str:
    return "\n".join(message["content"] for message in messages)


def test_closed_book_holds_the_question_and_nothing_of_a_document() -> None:
    messages = prompts.closed_book("Who built Hadle Mill?")
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[-1]["content"] == "Who built Hadle Mill?"


def test_closed_book_brings_its_own_system_message_so_that_no_template_adds_a_long_one() -> None:
    assert len(prompts.closed_book("?")[0]["content"].split()) <= 6


def test_passages_stand_in_reading_order_before_the_question() -> None:
    text = content(prompts.with_passages("Who?", ["First part. ", " Second part."]))
    assert text.index("First part.") < text.index("Second part.") < text.index("Who?")


def test_questions_about_the_same_passages_share_everything_before_the_question() -> None:
    one = content(prompts.with_passages("Who built it?", ["The mill is old."]))
    other = content(prompts.with_passages("When?", ["The mill is old."]))
    assert one[: one.index("Who built it?")] == other[: other.index("When?")]


@pytest.mark.parametrize(("title", "shown"), [("Hadle Mill", True), ("", False)])
def test_document_is_headed_by_its_title_when_it_has_one(title: str, shown: bool) -> None:
    text = content(prompts.with_document("Who?", title, "Built by Jon Ask."))
    assert ("Hadle Mill" in text) is shown
    assert "Built by Jon Ask." in text


def test_title_that_the_text_names_is_not_said_twice() -> None:
    assert content(prompts.with_document("Who?", "Hadle Mill", "Hadle Mill is old.")).count("Hadle Mill") == 1


def test_a_documents_sentences_stand_on_lines_of_their_own_and_nothing_is_lost() -> None:
    text = "It is old. Was it built by J. ask? Yes!\n\nThe roof: copper."
    shown = content(prompts.with_document("Who?", "", text))
    assert "It is old.\nWas it built by J. ask?\nYes!\n\nThe roof: copper.\n" in shown
