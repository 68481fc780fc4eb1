"""Which words of a question and of a text are the same, and questions that are none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramem.lexical import ASKING, tokens_of
from tests.lexicons import found, of_texts

# Tokens.


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("MILL", "a mill."),
        ("zurich", "in Zürich"),
        ("Zu\u0308rich", "Zürich"),
        ("Zürich", "ZURICH"),
        ("istanbul", "İSTANBUL"),
        ("strasse", "Straße"),
        ("A12", "Ａ１２"),
        ("42", "it costs 42.50 francs"),
        ("o'brien", "Brien"),
        ("ﬁnal", "final"),
        ("東京", "私は東京に住んでいる"),
        ("データ", "データベース"),
        ("ﾃﾞｰﾀ", "データ"),
        ("กรุงเทพ", "ฉันอยู่กรุงเทพมหานคร"),
        ("हिन्दी", "यह हिन्दी है"),
        ("Афины", "город афины"),
    ],
)
def test_what_reads_alike_is_found(question: str, text: str) -> None:
    assert found(of_texts(text, "nothing of it"), question) == {"u0"}


def test_words_are_not_stemmed_and_keep_their_marks() -> None:
    assert tokens_of("mills milled mill") == ["mills", "milled", "mill"]
    assert tokens_of("हिन्दी") == ["हिन्दी"]


def test_scripts_without_spaces_are_split_by_letter_and_others_are_not() -> None:
    assert tokens_of("GPU東京 データ 서울") == ["gpu", "東", "京", "デー", "タ", "서울"]
    ranked = of_texts("京", "東京都", "上海").search("東京", 10)
    assert [unit for unit, _ in ranked] == ["u1", "u0"]


def test_words_that_ask_do_not_count_beside_others() -> None:
    words = of_texts("what is the roof", "the mill of the king", "who was it")
    assert words.search("What is the mill of?", 10) == words.search("mill", 10)
    assert found(words, "what is the mill") == {"u1"}


def test_a_question_of_words_that_ask_uses_them() -> None:
    assert found(of_texts("The Who", "the mill"), "Who are the who?") == {"u0", "u1"}
    assert of_texts("The Who", "the mill").search("who", 1)[0][0] == "u0"


def test_a_word_said_twice_counts_once() -> None:
    words = of_texts("mill roof", "roof")
    assert words.search("mill mill Mill roof", 10) == words.search("mill roof", 10)


def test_words_that_ask_are_tokens() -> None:
    assert all(tokens_of(word) == [word] for word in ASKING)


# Hostile questions.


@pytest.mark.parametrize(
    "question",
    [
        'text:"mill" AND (unit:u1',
        "mill\0roof",
        "mill\ud800",
        "[mill TO *]",
        "mill^1e999 ~2 +-!{}\\/",
        "mill " + "x" * 100_000,
        "mill " + " ".join(f"w{number}" for number in range(20_000)),
    ],
)
def test_no_question_is_a_query_language(question: str) -> None:
    assert found(of_texts("the mill", "a bakery"), question) == {"u0"}


@pytest.mark.parametrize("question", ["", " ", "?!", "\0", "\ud800\udfff", '"', "()"])
def test_a_question_without_words_finds_nothing(question: str) -> None:
    assert of_texts("the mill", "?!").search(question, 10) == []


@settings(max_examples=100)
@given(text=st.text(st.characters()), other=st.text(st.characters()))
def test_every_text_finds_itself(text: str, other: str) -> None:
    words = of_texts(text, other)
    assert ("u0" in found(words, text)) is bool(tokens_of(text))
    assert all(0 < share <= 1 for _, share in words.search(text + other, 10))
