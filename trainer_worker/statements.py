"""A text cut into statements that can be understood, and given as an answer, alone: sentences, the long ones cut.

For a pronoun that a sentence begins with stands the name of what the text is about (`subject`). One that means
something else is kept, and the sentence is a statement together with the one before: `The longest pipe is called Old
Barnabas. It is five metres high.` A sentence of more than 28 words is cut where both sides stand (`clauses`); it is
kept whole up to 40 where a cut would leave what is no sentence, and up to 60 where one would leave what the text does
not say. Rules only, no model. What is not covered: other pronouns inside a sentence, and languages other than English
for pronouns and clauses.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

from trainer_worker.blocks import Block, Reading
from trainer_worker.clauses import Cut, Harm, cuts
from trainer_worker.sentences import Sentence, sentences_of
from trainer_worker.spans import AnswerSpan, spans_of
from trainer_worker.subject import named, subject_of
from trainer_worker.words import WORD_BYTES, content_words, size_of, size_of_word, stem

MAX_WORDS = 28
MAX_TOGETHER = 40
"""Words of a statement of several sentences, or of one that would be cut into what is no sentence."""
MAX_WHOLE = 60
"""Words of a sentence that is kept whole because whatever is cut off may say something else."""
WHOLE = {Harm.SOUND: MAX_WORDS, Harm.FRAGMENT: MAX_TOGETHER, Harm.FALSE: MAX_WHOLE}
"""How many words a sentence may have where the best cut in it does such harm."""
_POINTS_BACK = re.compile(
    r"^(?:It\b(?! (?:is|was) (?!an? |the )(?:\w+ ){0,3}(?:that|whether)\b)"
    r"|(?:He|She|Its|His|Her|They|Their|These)\b|This\b(?! (?:time|day|week|month|year|century)\b)"
    r"|(?:\w+ ){1,4}of them\b)"
)
_DEPENDS = re.compile(rf"(?:Which|Who|Whose|Where|Because)\b|{_POINTS_BACK.pattern}")
"""A part of a sentence that was cut, which says nothing without the part before."""
_PROSE = re.compile(r"^(?![#*|•–-]|\d+[.)] ).*[.!?…][\"'”’)]*(?:\[\w+\])*$")
"""What may stand before another sentence, and be a long one: no heading and no item of a list."""
LONGEST_WORD = MAX_WORDS * WORD_BYTES // 3
"""In characters, of up to three bytes each in most writing: what makes a whole part."""
HEAD_CHARS = 4 * MAX_WORDS * WORD_BYTES
"""More than a part and what decides where it ends."""
_PIECE = re.compile(rf".{{{LONGEST_WORD // 2},{LONGEST_WORD - 1}}}[,;:，、；：)}}\]]|.{{1,{LONGEST_WORD}}}")
"""Of a longer one, up to a mark where there is one."""
_LEADING = re.compile(r"^(?:and|but|so|while)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Statement:
    """`text`, its `parts` in a row, stands alone; `source` is the same in the document's own words."""

    text: str
    source: str
    spans: tuple[AnswerSpan, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """A sentence or, where that is too long, a piece of it."""

    text: str
    source: str
    spans: tuple[AnswerSpan, ...]
    points_back: bool
    goes_on: bool
    """Stands in the same block as the part before."""


def statements(title: str, reading: Reading) -> list[Statement]:
    """In reading order, without repeats; lines of odd shape (records, code) give one each, and what holds no sentence
    at all, such as a column of numbers, its words as they stand. The heading that opens a text is no statement.
    """
    subject = subject_of(title, f"{reading.opening}\n{reading.text}")
    found: dict[str, Statement] = {}
    for joined in _together(_parts(sentences_of(reading.blocks), subject, reading.opening)):
        parts = tuple(part.text for part in joined)
        source = " ".join(dict.fromkeys(part.source for part in joined))
        told = tuple(dict.fromkeys(span for part in joined for span in part.spans))
        found.setdefault(" ".join(parts).casefold(), Statement(" ".join(parts), source, told, parts))
    return list(found.values()) or list(_unworded(reading.text))


def _together(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Those that point back with those before them, up to `MAX_TOGETHER` words."""
    joined: list[_Part] = []
    for part in parts:
        words = sum(len(one.text.split()) for one in (*joined, part))
        if joined and not (words <= MAX_TOGETHER and _belongs(part, joined)):
            yield joined
            joined = []
        joined.append(part)
    if joined:
        yield joined


def _belongs(part: _Part, before: Sequence[_Part]) -> bool:
    """Whether it points back at prose, or at what is before it in its own item or heading; in no row of a table."""
    within = part.goes_on and "|" not in before[-1].text
    return part.points_back and (within or all(_PROSE.match(one.text) for one in before))


def _parts(told: Sequence[Sentence], subject: str, opening: str) -> Iterator[_Part]:
    last = -1
    for sentence, text in zip(told, named(told, subject, opening), strict=True):
        for number, (part, spans) in enumerate(_short(sentence.with_text(text), subject)):
            back = _DEPENDS.match(part) if number else not sentence.stands and _POINTS_BACK.match(part)
            goes_on = number > 0 or sentence.place == last
            yield _Part(part, sentence.said, spans, bool(back or sentence.belongs), goes_on)
        last = sentence.place


def _unworded(text: str) -> Iterator[Statement]:
    for piece in _with_short_words(text):
        words, at = piece.split(), 0
        while at < len(words):
            some = words[at : at + MAX_WORDS]
            part = " ".join(some[: _fitting(some)])
            yield Statement(part, part, (), (part,))
            at += _fitting(some)


def _short(said: Block, subject: str) -> Iterator[tuple[str, tuple[AnswerSpan, ...]]]:
    """What is said, cut at clauses into parts of at most `MAX_WORDS`; without clauses, by words, or within them. What
    is above it stands before the first, and nothing is cut from that."""
    above = size_of(said.above.split())
    parts = list[str]()
    for piece in _with_short_words(said.text):
        parts += _in_parts(piece, above=0 if parts else above)
    for number, text in enumerate(parts):
        whole = said if len(parts) == 1 else replace(said, text=text, cells=())
        part = Block(text) if number else whole
        yield part.said, tuple(spans_of(part, subject))


def _with_short_words(sentence: str) -> Iterator[str]:
    """The sentence itself; one that has words longer than a whole part, in pieces, the long words' own among them."""
    if len(sentence) <= LONGEST_WORD or max(map(len, sentence.split()), default=0) <= LONGEST_WORD:
        yield sentence
        return
    for long, words in groupby(sentence.split(), lambda word: len(word) > LONGEST_WORD):
        pieces = [piece for word in words for piece in (_PIECE.findall(word) if long else [word])]
        yield from pieces if long else [" ".join(pieces)]


def _in_parts(sentence: str, *, above: int) -> list[str]:
    """`above` is the size of what the first part has before it."""
    parts, at, is_clause = list[str](), 0, False
    while at < len(sentence):
        head = sentence[at : at + HEAD_CHARS]  # looking at all that is left, each time, would take hours for a book
        start = _LEADING.match(head) if is_clause else None
        if start:
            at += start.end()
            head = head[start.end() :]
        begun = _capital if is_clause else str
        before = 0 if parts else above
        size = size_of(words := head.split())
        if before + size <= MAX_WORDS or len(words) == 1:
            return [*parts, begun(head)]
        fits = list(_cuts(head, size, before))
        harm = min((one.harm for one in fits), default=Harm.FALSE)
        if before + size <= WHOLE[harm] and at + len(head) == len(sentence) and _PROSE.match(head):
            return [*parts, begun(head)]
        is_clause = bool(fits)
        if fits:
            cut = min((one.at for one in fits if one.harm == harm), key=lambda place: abs(place - len(head) / 2))
            parts.append(begun(head[:cut].rstrip(" ,;:") + "."))
        else:
            first = " ".join(words[: _fitting(words, before)])
            parts.append(begun(first))
            cut = len(first) + 1
        at += cut
    return parts


def _fitting(words: Sequence[str], before: int = 0) -> int:
    """How many of them make a part, after `before` others: one at least."""
    sizes = accumulate(map(size_of_word, words[:MAX_WORDS]), initial=before)
    return max(1, sum(so_far <= MAX_WORDS for so_far in sizes) - 1)


def _cuts(sentence: str, words: int, above: int) -> Iterator[Cut]:
    """Those with six to `MAX_WORDS` words before them, `above` among them, and four or more of all `words` from there
    on."""
    for cut in cuts(sentence):
        before = size_of(sentence[: cut.at].split())
        if above + before > MAX_WORDS or words - before < 4:
            return
        if above + before >= 6:
            yield cut


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def words_of_many(statements: Sequence[Statement]) -> set[str]:
    """Stems that two or more statements share: they do not tell which one is meant."""
    seen: set[str] = set()
    twice: set[str] = set()
    for statement in statements:
        stems = {stem(word) for word in content_words(statement.text)}
        twice |= stems & seen
        seen |= stems
    return twice
