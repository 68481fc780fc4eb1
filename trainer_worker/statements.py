"""A text cut into statements that can be understood, and given as an answer, alone: sentences of at most 28 words.

For a pronoun that a sentence begins with stands the name of what the text is about. One that means something else is
kept, and the sentence is a statement together with the one before: `The longest pipe is called Old Barnabas. It is five
metres high.` Rules only, no model. What is not covered: other pronouns inside a sentence, and languages other than
English for pronouns and clauses (their sentences are kept as they stand).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

from trainer_worker.blocks import Block, Reading
from trainer_worker.sentences import Sentence, sentences_of
from trainer_worker.spans import CAPITALISED, AnswerSpan, spans_of
from trainer_worker.words import WORD_BYTES, content_words, says, size_of, size_of_word, stem

MAX_WORDS = 28
MAX_TOGETHER = 40
"""Words of a statement of several sentences."""
MAX_NAME_WORDS = 6
LONG_NAME = 4
"""In letters, from which on a name is hardly a part of a word by chance."""
_PRONOUN = re.compile(r"^(It|He|She|Its|His|Her)\b(?! (?:is|was) (?:\w+ ){0,3}that\b)")
_POSSESSIVE = {"Its", "His", "Her"}
_KIND = {"It": "it", "Its": "it", "He": "he", "His": "he", "She": "she", "Her": "she"}
_POINTS_BACK = re.compile(
    r"^(?:It\b(?! (?:is|was) (?!an? |the )(?:\w+ ){0,3}(?:that|whether)\b)"
    r"|(?:He|She|Its|His|Her|They|Their|These)\b|This\b(?! (?:time|day|week|month|year|century)\b)"
    r"|(?:\w+ ){1,4}of them\b)"
)
_DEPENDS = re.compile(rf"(?:Which|Who|Whose|Where|Because)\b|{_POINTS_BACK.pattern}")
"""A part of a sentence that was cut, which says nothing without the part before."""
_PROSE = re.compile(r"^(?![#*|•–-]|\d+[.)] ).*[.!?…][\"'”’)]*(?:\[\w+\])*$")
"""What may stand before another sentence: no heading and no item of a list."""
LONGEST_WORD = MAX_WORDS * WORD_BYTES // 3
"""In characters, of up to three bytes each in most writing: what makes a whole part."""
HEAD_CHARS = 4 * MAX_WORDS * WORD_BYTES
"""More than a part and what decides where it ends."""
_PIECE = re.compile(rf".{{{LONGEST_WORD // 2},{LONGEST_WORD - 1}}}[,;:，、；：)}}\]]|.{{1,{LONGEST_WORD}}}")
"""Of a longer one, up to a mark where there is one."""
_JOINS = "and|but|so|which|who|whose|where|while|because"
_CLAUSE = re.compile(rf"(?:; |: |, (?=(?:{_JOINS})\b)| (?=(?:and|but|because|which|while|where)\b)|, )")
_LEADING = re.compile(r"^(?:and|but|so|while)\s+", re.IGNORECASE)
_OPENING = re.compile(rf"(?:The |An? )?({CAPITALISED}*(?: (?:of |the |and |de |von )*(?:{CAPITALISED}*|\d+))*)")


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
    subject = _subject(title, f"{reading.opening}\n{reading.text}")
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
    for sentence, text in zip(told, _named(told, subject, opening), strict=True):
        for number, (part, spans) in enumerate(_short(sentence.with_text(text), subject)):
            back = _DEPENDS.match(part) if number else not sentence.stands and _POINTS_BACK.match(part)
            goes_on = number > 0 or sentence.place == last
            yield _Part(part, sentence.said, spans, bool(back or sentence.belongs), goes_on)
        last = sentence.place


def _named(told: Sequence[Sentence], subject: str, before: str) -> Iterator[str]:
    """The sentences, with the subject's name for a pronoun of its that they begin with."""
    kind = _kind_of_subject(told)
    about_subject = bool(subject) and _begins_with(before, subject)
    for sentence in told:
        pronoun = None if sentence.stands else _PRONOUN.match(sentence.text)
        if pronoun and about_subject and _KIND[pronoun[1]] == kind:
            yield _with_name(sentence.text, pronoun, subject)
            about_subject = pronoun[1] not in _POSSESSIVE
        else:
            yield sentence.text
            about_subject = bool(subject) and _begins_with(sentence.said, subject)


def _kind_of_subject(told: Sequence[Sentence]) -> str:
    """`it`, `he` or `she`, as most sentences begin that begin with a pronoun; of equals the first.

    A single `he` or `she` may be anyone, so it takes two of them to make a person of the subject.
    """
    open_ones = (sentence.text for sentence in told if not sentence.stands)
    kinds = Counter(_KIND[match[1]] for text in open_ones if (match := _PRONOUN.match(text)))
    kind, count = kinds.most_common(1)[0] if kinds else ("", 0)
    return kind if kind == "it" or count > 1 else ""


def _unworded(text: str) -> Iterator[Statement]:
    for piece in _with_short_words(text):
        words, at = piece.split(), 0
        while at < len(words):
            some = words[at : at + MAX_WORDS]
            part = " ".join(some[: _fitting(some)])
            yield Statement(part, part, (), (part,))
            at += _fitting(some)


def name_of(title: str, text: str) -> str:
    """What the text is about: its title, or else the name that it opens with; a file's name is neither.

    The opening name must have two words or come again, so that no first word of a sentence passes for one.
    """
    if _may_say(text, _bare(title)):
        return title
    match = _OPENING.match(text.lstrip())
    words = match[1].split() if match else []
    if not words or not content_words(words[0]) or len(words) > MAX_NAME_WORDS:
        return title
    name = " ".join(words)
    return name if len(words) > 1 or text.count(name) > 1 else title


def _bare(title: str) -> str:
    return re.sub(r"^(?:the|a|an)\s+", "", title.strip().strip(" ."), flags=re.IGNORECASE)


def _may_say(text: str, name: str) -> bool:
    """Whatever it is made of, and perhaps within a word (`Berlins`): then no other name stands in its place."""
    if not name or (len(name) == 1 and name.islower()):
        return False
    text, name = text.casefold(), name.casefold()
    return (len(name) >= LONG_NAME and name in text) or says(text, name)


def _subject(title: str, text: str) -> str:
    """The title, if it is a name and the text says it; else nothing can be put for a pronoun."""
    bare = _bare(title)
    return bare if _names(bare) and len(bare.split()) <= MAX_NAME_WORDS and says(text, bare) else ""


def _names(bare: str) -> bool:
    """`4chan` and `K2` do, and `1984` does not."""
    short = len(bare) == 2 and bare.isupper()
    return short or any(any(map(str.isalpha, word)) for word in content_words(bare))


def _begins_with(sentence: str, subject: str) -> bool:
    """Whether the sentence speaks of the subject, by its last word: `Tamsk never married` of `Oriel Tamsk`."""
    return says(" ".join(sentence.split()[: 2 + len(subject.split())]), subject.split()[-1])


def _with_name(sentence: str, pronoun: re.Match[str], subject: str) -> str:
    named = subject if _is_name(subject) else f"The {subject}"
    return (f"{named}'s" if pronoun[1] in _POSSESSIVE else named) + sentence[pronoun.end() :]


def _is_name(subject: str) -> bool:
    return not any(word[:1].islower() and word not in {"of", "the", "and"} for word in subject.split())


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
        is_clause = bool(fits)
        if fits:
            cut = min(fits, key=lambda place: abs(place - len(head) / 2))
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


def _cuts(sentence: str, words: int, above: int) -> Iterator[int]:
    """Where a clause begins with six to `MAX_WORDS` words before it, `above` among them, and four or more of all
    `words` from there on."""
    for match in _CLAUSE.finditer(sentence):
        before = size_of(sentence[: match.end()].split())
        if above + before > MAX_WORDS or words - before < 4:
            return
        if above + before >= 6:
            yield match.end()


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
