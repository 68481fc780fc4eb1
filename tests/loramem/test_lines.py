"""What text is brought into: one form for what reads alike, in a time that its length gives."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramem.lines import attach_headings, compatible, composed, tidy, unwrap

MIXED = st.text(
    st.sampled_from("aeio \n.가각한か゛がガÅΩé\u0301\u0308\u0323\u3099\u1100\u1161\u11a8\u0958\u093c\u0915"),
    max_size=80,
)
WRAPPED = "The lamp of Zorv burns for exactly nine days and\nnights, then"


def test_letters_are_one_with_their_accents() -> None:
    assert tidy("Bjo\u0308rn Ask, Vie\u0323\u0302t, e\u00ad\u0301") == "Björn Ask, Việt, é"


@pytest.mark.parametrize("text", ["한국어의 글자", "がぎぐげござじず", "क़िला", "Ἀθῆναι", "\u212bngstro\u0308m"])
@pytest.mark.parametrize("times", [1, 500])
def test_no_letter_is_cut_from_its_marks_however_long_the_text(text: str, times: int) -> None:
    taken_apart = unicodedata.normalize("NFD", text * times)
    assert composed(taken_apart) == unicodedata.normalize("NFC", text * times)


@given(MIXED)
def test_what_is_composed_is_nfc(text: str) -> None:
    assert composed(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    "text", ["a" + "\u0300" * 150_000 + "\u0316" * 150_000, "\u0300\u0316" * 150_000, "한" * 300_000]
)
def test_no_run_of_marks_takes_long(text: str) -> None:
    started = time.process_time()
    tidy(text)
    assert time.process_time() - started < 1


def test_unwrapping_and_headings_keep_every_offset() -> None:
    text = f"Heading\n\n{WRAPPED}" + " it rests" * 10
    shaped = attach_headings(unwrap(text))
    assert shaped == text.replace("\n", " ")
    assert len(shaped) == len(text)


@pytest.mark.parametrize(
    "text", ["short\nline", "The lamp of Zorv burns for exactly nine days.\nthen", "x" * 60 + "\nAda: 12\nBob: 13"]
)
def test_lists_and_sentence_ends_are_left_alone(text: str) -> None:
    assert unwrap(text) == text


def test_prose_is_joined_before_names_and_numbers_too() -> None:
    lines = [
        "The lamp of Zorv burns for nine whole days and",
        "nights, and then it is given to a guard of",
        "3 men",
    ]
    text = "\n".join(lines)
    assert unwrap(text) == text.replace("\n", " ")


@given(
    st.text(
        st.sampled_from("aA\u00e9\u0301\u0316\ufb01\u00b2\u00bd\uff21\u212b\u1100\u1161\u11a8 .ｶﾊﾞﾟㅎㅏﾡￂ"), max_size=300
    )
)
def test_what_reads_alike_has_one_form(text: str) -> None:
    assert compatible(text) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("text", ["a" + "\u0301\u0316" * 150_000, "\ufb01" * 300_000])
def test_no_run_of_marks_takes_long_for_words_either(text: str) -> None:
    started = time.process_time()
    compatible(text)
    assert time.process_time() - started < 1
