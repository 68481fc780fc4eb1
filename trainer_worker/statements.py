"""A text cut into statements that can be understood, and given as an answer, alone: sentences of at most 28 words.

For a pronoun that a sentence begins with stands the name of what the text is about. One that means something else is
kept, and the sentence is a statement together with the one before: `The longest pipe is called Old Barnabas. It is five
metres high.` Rules only, no model. What is not covered: other pronouns inside a sentence, and languages other than
English for pronouns and clauses (their sentences are kept as they stand).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from trainer_worker.spans import CAPITALISED, LEAD_ENDS, SIGN, AnswerSpan, spans_of_part, unled
from trainer_worker.words import content_words, says, stem

MAX_WORDS = 28
WORD_BYTES = 24
"""A longer word, in UTF-8, counts as several: data and some languages have no blanks between theirs."""
MAX_TOGETHER = 40
"""Words of a statement of several sentences."""
MAX_NAME_WORDS = 6
LONG_NAME = 4
"""In letters, from which on a name is hardly a part of a word by chance."""
MIN_LETTERS = 3
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
LONG_LINE, SHORT_LINE = 50, 40
"""In characters: longer than the one a line may be wrapped, up to the other it is not."""
LOWER_SHARE = 0.25
"""Of lines that begin in lower case, from which on the others of their paragraph are wrapped too."""
_QUOTE = re.compile(r"^\s*(?:>\s?)+")
_ITEM = re.compile(r"[-*•–|#+] ?\S|\(?\d{1,3}[.)] |\(?\w[.)] ")
_OF_TABLES = (re.compile(r"\|"), re.compile(r"\t"))
_SEPARATORS = (re.compile(r"(?<![.!?:]) {2,}"), re.compile(r"[^\s\d],(?=\S)|,(?=[^\s\d])"), re.compile("[=;]"))
_NUMBERING = re.compile(r"(?:#{1,6} |[*_]{2})?\(?(?:\w{1,2}\.)*\w{1,2}[.)]")
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
    points_back: bool
    goes_on: bool
    """Stands in the same block as the part before."""


def statements(title: str, text: str, opening: str = "") -> list[Statement]:
    """In reading order, without repeats; a text of odd shape (table, list, code) gives one for each line, and one that
    holds no sentence at all, such as a column of numbers, its words as they stand.

    `opening` is the heading above, which is no statement.
    """
    subject = _subject(title, f"{opening}\n{text}")
    found: dict[str, Statement] = {}
    for joined in _together(_parts(_in_blocks(text), subject, opening)):
        parts = tuple(unled(part.text) for part in joined)
        source = unled(" ".join(dict.fromkeys(part.source for part in joined)))
        told = tuple(dict.fromkeys(span for part in joined for span in spans_of_part(part.text, subject)))
        found.setdefault(" ".join(parts).casefold(), Statement(" ".join(parts), source, told, parts))
    return list(found.values()) or list(_unworded(text))


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


def _parts(told: Sequence[tuple[str, int]], subject: str, opening: str) -> Iterator[_Part]:
    last = -1
    named = _named([sentence for sentence, _ in told], subject, opening)
    for (source, block), sentence in zip(told, named, strict=True):
        first, *others = _short(sentence)
        yield _Part(first, source, bool(_POINTS_BACK.match(first)), block == last)
        for part in others:
            yield _Part(part, source, bool(_DEPENDS.match(part)), goes_on=True)
        last = block


def _named(told: Sequence[str], subject: str, before: str) -> Iterator[str]:
    """The sentences, with the subject's name for a pronoun of its that they begin with."""
    kind = _kind_of_subject(told)
    about_subject = bool(subject) and _begins_with(before, subject)
    for sentence in told:
        pronoun = _PRONOUN.match(sentence)
        if pronoun and about_subject and _KIND[pronoun[1]] == kind:
            yield _with_name(sentence, pronoun, subject)
            about_subject = pronoun[1] not in _POSSESSIVE
        else:
            yield sentence
            about_subject = bool(subject) and _begins_with(sentence, subject)


def _kind_of_subject(told: Sequence[str]) -> str:
    """`it`, `he` or `she`, as most sentences begin that begin with a pronoun; of equals the first.

    A single `he` or `she` may be anyone, so it takes two of them to make a person of the subject.
    """
    kinds = Counter(_KIND[match[1]] for sentence in told if (match := _PRONOUN.match(sentence)))
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


def sentences(text: str) -> list[str]:
    """Sentences, across line ends only where these are inside one; what holds fewer than three letters or digits stands
    with the one before it, or as the number of an item with the one after."""
    return [sentence for sentence, _ in _in_blocks(text)]


def _in_blocks(text: str) -> list[tuple[str, int]]:
    """The sentences, each with the number of the block it is in."""
    blocks = enumerate(_blocks(text))
    return _joined_if_short((" ".join(piece.split()), place) for place, block in blocks for piece in _segments(block))


def _segments(block: str) -> Iterator[str]:
    """A dot that a word begins with, as in `.NET`, ends none."""
    from sentencex import segment

    pieces = list[str]()
    for part in map(str, segment("en", block)):
        pieces.append(part)
        if not (part.endswith(".") and part[-2:].strip() == "."):
            yield "".join(pieces)
            pieces.clear()
    yield "".join(pieces)


def _blocks(text: str) -> Iterator[str]:
    """Wrapped prose is one block; items of a list are one each, and rows of a table, records and other lines."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [_QUOTE.sub("", line).strip() for line in paragraph.splitlines()]
        lines = [line for line in lines if line]
        bare = [line.rpartition(LEAD_ENDS)[2] for line in lines]
        wrapped = not _are_records(bare) and _wrapped_as(bare)
        blocks = list[str]()
        for before, line in zip(["", *bare], lines, strict=False):
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


def _joined_if_short(pieces: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    found, number, place = list[tuple[str, int]](), "", 0
    for piece, place in pieces:
        letters = sum(map(str.isalnum, piece))
        if _is_numbering(piece, letters):
            number = f"{number} {piece}".strip()
        elif letters < MIN_LETTERS and found:
            found[-1] = (f"{found[-1][0]} {piece}" if letters else found[-1][0], found[-1][1])
        elif letters:
            found.append((f"{number} {piece}".strip(), place))
            number = ""
    if number:
        last, place = found.pop() if found else ("", place)
        found.append((f"{last} {number}".strip(), place))
    return found


def _is_numbering(piece: str, letters: int) -> bool:
    """`3.` and `a)`, and longer ones that end in a digit: `## 10.1.`"""
    return bool(_NUMBERING.fullmatch(piece)) and (letters < MIN_LETTERS or piece[-2].isdigit())


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


def _short(sentence: str) -> list[str]:
    """The sentence, cut at clauses into parts of at most `MAX_WORDS`; without clauses, by words, or within them.
    A lead without an item is none."""
    parts = [part for piece in _with_short_words(sentence) for part in _in_parts(piece)]
    return [part for part in parts if not part.endswith(SIGN)] or parts


def _with_short_words(sentence: str) -> Iterator[str]:
    """The sentence itself; one that has words longer than a whole part, in pieces, the long words' own among them."""
    if len(sentence) <= LONGEST_WORD or max(map(len, sentence.split()), default=0) <= LONGEST_WORD:
        yield sentence
        return
    for long, words in groupby(sentence.split(), lambda word: len(word) > LONGEST_WORD):
        pieces = [piece for word in words for piece in (_PIECE.findall(word) if long else [word])]
        yield from pieces if long else [" ".join(pieces)]


def _in_parts(sentence: str) -> list[str]:
    parts, at, is_clause = list[str](), 0, False
    while at < len(sentence):
        head = sentence[at : at + HEAD_CHARS]  # looking at all that is left, each time, would take hours for a book
        start = _LEADING.match(head) if is_clause else None
        if start:
            at += start.end()
            head = head[start.end() :]
        begun = _capital if is_clause else str
        size = size_of(words := head.split())
        if size <= MAX_WORDS or len(words) == 1:
            return [*parts, begun(head)]
        fits = list(_cuts(head, size))
        is_clause = bool(fits)
        if fits:
            cut = min(fits, key=lambda place: abs(place - len(head) / 2))
            parts.append(begun(head[:cut].rstrip(" ,;:") + "."))
        else:
            first = " ".join(words[: _fitting(words)])
            parts.append(begun(first))
            cut = len(first) + 1
        at += cut
    return parts


def _fitting(words: Sequence[str]) -> int:
    """How many of them make a part: one at least."""
    return max(1, sum(so_far <= MAX_WORDS for so_far in accumulate(map(_words_of, words[:MAX_WORDS]))))


def size_of(words: Iterable[str]) -> int:
    """How many words they count as: long ones, as of texts without blanks, are several."""
    return sum(map(_words_of, words))


def _words_of(word: str) -> int:
    return -(-len(word.encode("utf-8", "replace")) // WORD_BYTES)


def _cuts(sentence: str, words: int) -> Iterator[int]:
    """Where a clause begins with six to `MAX_WORDS` words before it and four or more of all `words` from there on."""
    for match in _CLAUSE.finditer(sentence):
        before = size_of(sentence[: match.end()].split())
        if before > MAX_WORDS or words - before < 4:
            return
        if before >= 6:
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
