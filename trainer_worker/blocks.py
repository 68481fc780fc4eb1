"""What a text is read as before it is cut into statements: blocks of words, each with what is said above it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer_worker.told import Told
from trainer_worker.words import is_worded, size_of


@dataclass(frozen=True)
class Cell:
    text: str
    column: str = ""
    """Its name, which no question asks for."""

    @property
    def said(self) -> str:
        return f"{self.column} {self.text}" if self.column else self.text


@dataclass(frozen=True)
class Block:
    """Paragraphs of prose; an item of a list; a row of a table, which has `cells`.

    Its first sentence is said together with `lead`, which blocks beside it say too, and with `news`, which it alone
    says: so questions may ask for the latter.
    """

    text: str
    lead: str = ""
    news: str = ""
    cells: tuple[Cell, ...] = ()
    opens: bool = False
    """A section: points at nothing before it."""
    whole: bool = False
    """Its sentences are understood together."""

    @property
    def above(self) -> str:
        return ": ".join(filter(None, (self.lead, self.news)))

    @property
    def said(self) -> str:
        return ": ".join(filter(None, (self.above, self.text)))


@dataclass(frozen=True)
class Reading:
    """A text as a reader sees it. `opening` is the heading that it begins with; `pairs` are asked by headings."""

    blocks: tuple[Block, ...]
    opening: str = ""
    pairs: tuple[Told, ...] = ()

    @property
    def text(self) -> str:
        return "\n\n".join(block.said for block in self.blocks)


def plain(text: str) -> Reading:
    return Reading((Block(text),))


def rows_of(names: Sequence[str], texts: Sequence[str], room: int) -> Iterator[Block]:
    """One of the cells that say something; of those for which it has no room (in words) several, each of which begins
    with the first."""
    cells = [Cell(text, name) for name, text in zip(names, texts, strict=True) if is_worded(text)]
    held = cells[:1]
    for cell in cells[1:]:
        if len(held) > 1 and size_of(_row([*held, cell]).text.split()) > room:
            yield _row(held)
            held = cells[:1]
        held.append(cell)
    if held:
        yield _row(held)


def _row(cells: Sequence[Cell]) -> Block:
    """`Plan Free: Users 3, Fee 12`"""
    first, *others = (cell.said for cell in cells)
    return Block(": ".join(filter(None, (first, ", ".join(others)))), cells=tuple(cells))
