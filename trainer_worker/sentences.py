"""Text cut into sentences, whatever its lines are: wrapped prose, items of lists, records, code."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from trainer_worker.blocks import Block

MIN_LETTERS = 3
LONG_LINE, SHORT_LINE = 50, 40
"""In characters: longer than the one a line may be wrapped, up to the other it is not."""
LOWER_SHARE = 0.25
"""Of lines that begin in lower case, from which on the others of their paragraph are wrapped too."""
_QUOTE = re.compile(r"^\s*(?:>\s?)+")
_ITEM = re.compile(r"[-*•–|#+] ?\S|\(?\d{1,3}[.)] |\(?\w[.)] ")
_OF_TABLES = (re.compile(r"\|"), re.compile(r"\t"))
_SEPARATORS = (re.compile(r"(?<![.!?:]) {2,}"), re.compile(r"[^\s\d],(?=\S)|,(?=[^\s\d])"), re.compile("[=;]"))
_BEFORE_ANY = re.compile(r"\b(?:approx|incl|excl)\.\s*$", re.IGNORECASE)
_BEFORE_SMALL = re.compile(r"\b(?:hrs?|mins?|secs?|temp|avg|max|min|est|dept|ext)\.\s*$", re.IGNORECASE)
_BEFORE_NUMBERS = re.compile(
    r"\b(?:max|min|vol|ch|sec|art|no|nos|pp?|fig|tab|tel|ext|est|temp|avg|ca|cf)\.\s*$", re.IGNORECASE
)
_NUMBERING = re.compile(r"(?:#{1,6} |[*_]{2})?\(?(?:\w{1,2}\.)*\w{1,2}[.)]")


@dataclass(frozen=True)
class Sentence:
    """`text` is without what stands above its block, which the first of it is said together with."""

    text: str
    place: int
    """The number of the lines it is in, in reading order."""
    block: Block | None = None
    """The block of which it is the first."""
    belongs: bool = False
    """To the sentence before, as both are of one item."""

    @property
    def stands(self) -> bool:
        """Whether it points at nothing before it, as it says what is above it or begins a section."""
        return self.block is not None and bool(self.block.opens or self.block.above)

    @property
    def said(self) -> str:
        return self.with_text(self.text).said

    def with_text(self, text: str) -> Block:
        return replace(self.block, text=text) if self.block else Block(text)


def sentences(text: str) -> list[str]:
    """Sentences, across line ends only where these are inside one; what holds fewer than three letters or digits stands
    with the one before it, or as the number of an item with the one after."""
    return [sentence.text for sentence in sentences_of([Block(text)])]


def sentences_of(blocks: Iterable[Block]) -> list[Sentence]:
    return _joined_if_short(_pieces(blocks))


def _pieces(blocks: Iterable[Block]) -> Iterator[Sentence]:
    """A row of a table is one, whatever its cells say."""
    place = 0
    for block in blocks:
        first: Block | None = block
        for lines in [block.text] if block.cells else _blocks(block.text):
            place += 1
            for piece in [lines] if block.cells else _segments(lines):
                if text := " ".join(piece.split()):
                    yield Sentence(text, place, first, belongs=block.whole and first is None)
                    first = None


def _segments(block: str) -> Iterator[str]:
    """A dot that a word begins with, as in `.NET`, ends none, nor does that of an abbreviation."""
    from sentencex import segment

    pieces = list[str]()
    parts = list(map(str, segment("en", block)))
    for part, after in zip(parts, [*parts[1:], ""], strict=True):
        pieces.append(part)
        if not (part.endswith(".") and part[-2:].strip() == ".") and not _is_abbreviated(part, after):
            yield "".join(pieces)
            pieces.clear()
    yield "".join(pieces)


def _is_abbreviated(before: str, after: str) -> bool:
    """Whether the dot that `before` ends in is that of its last word, as in `approx. 20`."""
    if not after:
        return False
    small = after[0].islower() and _BEFORE_SMALL.search(before)
    return bool(small or _BEFORE_ANY.search(before) or (after[0].isdigit() and _BEFORE_NUMBERS.search(before)))


def _blocks(text: str) -> Iterator[str]:
    """Wrapped prose is one block; items of a list are one each, and rows of a table, records and other lines."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [_QUOTE.sub("", line).strip() for line in paragraph.splitlines()]
        lines = [line for line in lines if line]
        wrapped = not _are_records(lines) and _wrapped_as(lines)
        blocks = list[str]()
        for before, line in zip(["", *lines], lines, strict=False):
            if wrapped and before and wrapped(before, line) and not _ITEM.match(line):
                blocks[-1] += f" {line}"
            else:
                blocks.append(line)
        yield from blocks


def _are_records(lines: Sequence[str]) -> bool:
    """A table's rows, or lines of one shape: as many separators in each, or each begins with a number."""
    if len(lines) < 2:
        return False
    rows = any(all(separator.search(line) for line in lines) for separator in _OF_TABLES)
    counts = [{len(separator.findall(line)) for line in lines} for separator in _SEPARATORS]
    alike = any(len(count) == 1 and 0 not in count for count in counts)
    commas = {line.count(", ") for line in lines}
    listed = len(lines) > 2 and len(commas) == 1 and min(commas) > 1
    return rows or alike or listed or all(line[0].isdigit() for line in lines)


def _wrapped_as(lines: Sequence[str]) -> Callable[[str, str], bool]:
    """Whether a line goes on with the next: any does where all but the last are long; else one that is not short and
    ends no sentence, where the next begins in lower case or many do."""
    if all(len(line) > LONG_LINE for line in lines[:-1]):
        return lambda before, line: True
    many = sum(line[0].islower() for line in lines[1:]) >= LOWER_SHARE * (len(lines) - 1)
    return lambda before, line: len(before) > SHORT_LINE and before[-1] not in ".!?:;|" and (many or line[0].islower())


def _joined_if_short(pieces: Iterable[Sentence]) -> list[Sentence]:
    found, number = list[Sentence](), ""
    for piece in pieces:
        letters = sum(map(str.isalnum, piece.said))
        if _is_numbering(piece.said, letters):
            number = f"{number} {piece.text}".strip()
        elif letters < MIN_LETTERS and found:
            found[-1] = replace(found[-1], text=f"{found[-1].text} {piece.text}") if letters else found[-1]
        elif letters:
            found.append(replace(piece, text=f"{number} {piece.text}".strip()))
            number = ""
    if number and found:
        found[-1] = replace(found[-1], text=f"{found[-1].text} {number}")
    elif number:
        found.append(Sentence(number, 0))
    return found


def _is_numbering(piece: str, letters: int) -> bool:
    """`3.` and `a)`, and longer ones that end in a digit: `## 10.1.`"""
    return bool(_NUMBERING.fullmatch(piece)) and (letters < MIN_LETTERS or piece[-2].isdigit())
