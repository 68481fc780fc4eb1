"""Cuts a document into chunks (one adapter each) and windows (what the embedder reads at once).

Boundaries come from semantic-text-splitter: blank lines before line ends before sentence ends before words. Offsets
are characters of the document's text, tokens are counted without special tokens.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from loramem.lines import attach_headings, unwrap

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BALANCED_CHUNKS = 8
_SMALLEST_SHARE = 0.5


@dataclass(frozen=True)
class Span:
    """`text[start:end]`, which is `tokens` long."""

    start: int
    end: int
    tokens: int


def chunk_text(text: str, tokenizer_path: str, *, max_tokens: int, overlap_tokens: int) -> list[Span]:
    """Spans that cover all of the text, in order, none over `max_tokens`, neighbours sharing up to `overlap_tokens`.

    A last chunk under half the size of the largest would make a weak adapter: then the last eight chunks are cut
    anew at the smallest length that needs no more of them, so that 800 tokens become about 400 and 400.
    """
    shaped = attach_headings(unwrap(text))
    tokenizer = _tokenizer(tokenizer_path)
    spans = _split(shaped, 0, tokenizer, max_tokens, overlap_tokens)
    if len(spans) < 2 or spans[-1].tokens >= _SMALLEST_SHARE * max(span.tokens for span in spans):
        return spans
    tail = spans[-_BALANCED_CHUNKS:]
    return spans[: -len(tail)] + _balance(shaped, tail, tokenizer, max_tokens, overlap_tokens)


def window_spans(text: str, start: int, end: int, tokenizer_path: str, *, max_tokens: int) -> list[Span]:
    """Spans within `text[start:end]` without overlap, ending with sentences where these fit into `max_tokens`.

    Offsets are into `text`. Leave room for the embedder's special tokens (two for BERT) in `max_tokens`.
    """
    shaped = attach_headings(unwrap(text[start:end]))
    return _split(shaped, start, _tokenizer(tokenizer_path), max_tokens, 0)


@lru_cache(maxsize=8)
def _tokenizer(path: str) -> "Tokenizer":
    """An embedder's file may carry truncation and padding, which would make every length look the same."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _split(text: str, offset: int, tokenizer: "Tokenizer", max_tokens: int, overlap_tokens: int) -> list[Span]:
    from semantic_text_splitter import TextSplitter

    splitter = TextSplitter.from_huggingface_tokenizer(tokenizer, max_tokens, overlap=overlap_tokens)
    pieces = splitter.chunk_indices(text)
    encodings = tokenizer.encode_batch([piece for _, piece in pieces], add_special_tokens=False)
    return [
        Span(offset + start, offset + start + len(piece), len(encoding))
        for (start, piece), encoding in zip(pieces, encodings, strict=True)
    ]


def _balance(text: str, tail: list[Span], tokenizer: "Tokenizer", max_tokens: int, overlap_tokens: int) -> list[Span]:
    """Bisects the smallest capacity that needs no more chunks than `tail`; to a sixteenth of it, about a sentence."""
    start = tail[0].start
    best, too_small, enough = tail, max_tokens // 2, max_tokens
    while enough - too_small > max(1, max_tokens // 16):
        capacity = (too_small + enough) // 2
        spans = _split(text[start:], start, tokenizer, capacity, min(overlap_tokens, capacity // 2))
        if len(spans) <= len(tail):
            best, enough = spans, capacity
        else:
            too_small = capacity
    return best
