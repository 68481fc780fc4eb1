"""Cuts a document into chunks (one adapter each) and windows (what the embedder reads at once).

Boundaries come from semantic-text-splitter: blank lines before line ends before sentence ends before words. Offsets
are characters of the document's text, tokens are counted without special tokens.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from loramem.lines import attach_headings, unwrap

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BALANCED_CHUNKS = 8
_SMALLEST_SHARE = 0.5
_SENTENCE_START = re.compile(r"(?:[.!?\u2026][\"')\]\u2019\u201d]*[ \t\xa0]+|[\u3002\uff01\uff1f]|\n)(?=\S)")
_WORD_START = re.compile(r"\s(?=\S)")


@dataclass(frozen=True)
class Span:
    """`text[start:end]`, which is `tokens` long."""

    start: int
    end: int
    tokens: int


def chunk_text(text: str, tokenizer_path: str, *, max_tokens: int, overlap_tokens: int) -> list[Span]:
    """Spans that cover all of the text, in order, none over `max_tokens`; empty for a blank text.

    Each begins with the last sentences of the one before, up to `overlap_tokens`. A last chunk under half the size of
    the largest would make a weak adapter: then the last eight are cut again into as many of about the same size, so
    that 800 tokens become about 400 and 400.
    """
    if overlap_tokens >= max_tokens:
        raise ValueError(f"overlap_tokens={overlap_tokens} must be smaller than max_tokens={max_tokens}")
    shaped = attach_headings(unwrap(text))
    tokenizer = _tokenizer(tokenizer_path)
    whole = _measure(shaped, [(0, len(text))], tokenizer)
    if whole[0].tokens <= max_tokens:
        return _split(shaped, 0, tokenizer, max_tokens)
    spans = _balanced(shaped, tokenizer, max_tokens - overlap_tokens)
    return _overlapping(shaped, spans, tokenizer, max_tokens, overlap_tokens)


def count_tokens(text: str, tokenizer_path: str) -> int:
    """Without the special tokens that begin or end a prompt."""
    return len(_tokenizer(tokenizer_path).encode(text, add_special_tokens=False).ids)


def window_spans(text: str, start: int, end: int, tokenizer_path: str, *, max_tokens: int) -> list[Span]:
    """Spans within `text[start:end]` without overlap, ending with sentences where these fit into `max_tokens`.

    Offsets are into `text`. Leave room for the embedder's special tokens (two for BERT) in `max_tokens`.
    """
    shaped = attach_headings(unwrap(text[start:end]))
    return _split(shaped, start, _tokenizer(tokenizer_path), max_tokens)


@lru_cache(maxsize=8)
def _tokenizer(path: str) -> "Tokenizer":
    """An embedder's file may carry truncation and padding, which would make every length look the same."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _split(text: str, offset: int, tokenizer: "Tokenizer", max_tokens: int) -> list[Span]:
    from semantic_text_splitter import TextSplitter

    pieces = TextSplitter.from_huggingface_tokenizer(tokenizer, max_tokens).chunk_indices(text)
    spans = _measure(text, [(start, start + len(piece)) for start, piece in pieces], tokenizer)
    return [Span(offset + span.start, offset + span.end, span.tokens) for span in spans]


def _measure(text: str, bounds: list[tuple[int, int]], tokenizer: "Tokenizer") -> list[Span]:
    encodings = tokenizer.encode_batch([text[start:end] for start, end in bounds], add_special_tokens=False)
    return [Span(start, end, len(encoding)) for (start, end), encoding in zip(bounds, encodings, strict=True)]


def _balanced(text: str, tokenizer: "Tokenizer", max_tokens: int) -> list[Span]:
    spans = _split(text, 0, tokenizer, max_tokens)
    if len(spans) < 2 or spans[-1].tokens >= _SMALLEST_SHARE * max(span.tokens for span in spans):
        return spans
    tail = spans[-_BALANCED_CHUNKS:]
    return spans[: -len(tail)] + _evened(text, tail, tokenizer, max_tokens)


def _evened(text: str, tail: list[Span], tokenizer: "Tokenizer", max_tokens: int) -> list[Span]:
    """Bisects the smallest capacity that needs no more chunks than `tail`; to a sixteenth of it, about a sentence."""
    start = tail[0].start
    best, too_small, enough = tail, max_tokens // 2, max_tokens
    while enough - too_small > max(1, max_tokens // 16):
        capacity = (too_small + enough) // 2
        spans = _split(text[start:], start, tokenizer, capacity)
        if len(spans) <= len(tail):
            best, enough = spans, capacity
        else:
            too_small = capacity
    return best


def _overlapping(
    text: str, spans: list[Span], tokenizer: "Tokenizer", max_tokens: int, overlap_tokens: int
) -> list[Span]:
    """The splitter's own overlap shares whole paragraphs or nothing; this one shares sentences, or else words."""
    bounds = [(spans[0].start, spans[0].end)]
    for previous, span in pairwise(spans):
        budget = min(overlap_tokens, previous.tokens // 2, max_tokens - span.tokens)
        bounds.append((_tail_start(text, previous, tokenizer, budget) if budget > 0 else span.start, span.end))
    measured = zip(spans, _measure(text, bounds, tokenizer), strict=True)
    return [longer if longer.tokens <= max_tokens else span for span, longer in measured]


def _tail_start(text: str, span: Span, tokenizer: "Tokenizer", tokens: int) -> int:
    """Where the first sentence (or else word) begins within the last `tokens` of the span."""
    tail = text[span.start : span.end]
    offsets = tokenizer.encode(tail, add_special_tokens=False).offsets
    earliest = offsets[-tokens][0]
    found = _SENTENCE_START.search(tail, earliest) or _WORD_START.search(tail, earliest)
    return span.start + (found.end() if found else earliest)
