"""Words in common: BM25 over short texts, held in memory, filled from the database when first asked.

A `Lexicon` holds groups (a document, an adapter) of units (a chunk, a question). Every change publishes a new `Words`,
which never changes, so any number of threads may search one while the next is made.

A unit's score is its share of the most that any text could reach for the question: BM25 of the unit, divided by the sum
of idf * (k1 + 1) over the question's distinct words. It lies in 0 to 1 and compares between questions and namespaces; a
word that no text holds counts against every unit, among few texts by no more than among twenty, beside a word that one
of them holds. BM25 is tantivy's (k1 1.2, b 0.75), which keeps the length of a text in one byte: exact to 40 words,
rounded down by at most an eighth above.

Not covered: stemming (it found less), synonyms, word order.
"""

import math
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

import tantivy
from tantivy import Filter, Occur, Query

from loramem.lines import compatible

K1 = 1.2
"""tantivy's; it cannot be set."""
ABSENT = 1.42
"""The idf of a word that no text holds, by that of one that a single text holds, is this among twenty texts, and nearer
to 1 among more. Among fewer it would be more, up to 4.8: a word that a lone text does not hold would outweigh four that
it does."""
HEAP_BYTES = 15_000_000
"""The least that a tantivy writer takes; reached once in about 10 MB of text."""
DELETED_SHARE = 1 / 8
"""tantivy counts deleted units in its statistics until it merges their segment; above this share we start afresh."""

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts without spaces between words: each letter, with its marks, is a token."""
TOKEN = rf"[{UNSPACED}][\p{{M}}ー]*|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+"
READ_CHARS, READ_TOKENS = 4096, 64
"""Of a question; each token costs a look-up in every search."""
UNITS = 65_536
"""Whose names are kept, in 14 MB."""
SURROGATE = re.compile("[\ud800-\udfff]")

ASKING = frozenset(
    {"what", "which", "who", "whom", "whose", "when", "where", "why", "how"}
    | {"is", "are", "was", "were", "be", "do", "does", "did", "has", "have", "had"}
    | {"the", "a", "an", "of", "in", "on", "at", "to", "for", "from", "by", "with", "and"}
)
"""Words that ask and do not name. They count only in a question that holds no others."""


@dataclass(frozen=True)
class Entry:
    """One text. A `unit` belongs to one group; both names are kept as they are, case and all."""

    group: str
    unit: str
    text: str


@dataclass(frozen=True)
class Words:
    """The units of one moment."""

    searcher: tantivy.Searcher
    _units: dict[tuple[int, int], str] = field(default_factory=dict, repr=False, compare=False)
    """Those that were found, by segment and place: to read a name, tantivy unpacks the text beside it."""

    def search(
        self, question: str, limit: int, *, groups: Collection[str] | None = None, units: Collection[str] | None = None
    ) -> list[tuple[str, float]]:
        """Up to `limit` units that share a word with the question, each with its share (0 to 1), best first.

        `groups` and `units` choose among which, and change no score. Any string is a question.
        """
        tokens = tokens_of(question)
        limit = min(limit, self.searcher.num_docs)  # tantivy makes room for as many as are asked for, and refuses 0
        if limit < 1 or not tokens:
            return []
        most = sum(self._weight(token) * (K1 + 1) for token in tokens)
        query = _filtered(_any_of(tokens), {"group": groups, "unit": units})
        hits = self.searcher.search(query, limit, count=False).hits
        # tantivy adds in single precision, which may round past the most
        return [(self._unit(address), min(1.0, score / most)) for score, address in hits]

    def entries(self) -> Iterator[Entry]:
        """All units, with their texts as they were normalised."""
        hits = self.searcher.search(Query.all_query(), max(1, self.searcher.num_docs), count=False).hits
        for _, address in hits:
            stored = self.searcher.doc(address)
            yield Entry(*(str(stored[name][0]) for name in ("group", "unit", "text")))

    def deleted_share(self) -> float:
        """Of the units in the statistics, how many are no longer there."""
        return 1 - self.searcher.num_docs / max(1, self._counted)

    @cached_property
    def _counted(self) -> int:
        return self.searcher.doc_freq("every", "1")

    def _weight(self, token: str) -> float:
        """Its idf, from the statistics that tantivy scores with: deleted units are in both."""
        holding = self.searcher.doc_freq("text", token)
        return self._idf(holding) if holding else min(self._idf(0), ABSENT * self._idf(1))

    def _idf(self, holding: int) -> float:
        """tantivy's (`query/bm25.rs: idf`)."""
        return math.log(1 + (self._counted - holding + 0.5) / (holding + 0.5))

    def _unit(self, address: tantivy.DocAddress) -> str:
        place = address.segment_ord, address.doc
        unit = self._units.get(place)
        if unit is None:
            unit = str(self.searcher.doc(address)["unit"][0])
            if len(self._units) >= UNITS:
                self._units.clear()
            self._units[place] = unit
        return unit


class Lexicon:
    """All units, changed by one thread at a time; safe to use from several."""

    def __init__(self) -> None:
        self._index = _empty_index()
        self._words = Words(self._index.searcher())
        self._changing = threading.Lock()

    def snapshot(self) -> Words:
        """What the last change left."""
        return self._words

    def change(self, gone_groups: Collection[str], entries: Iterable[Entry]) -> None:
        """Drop the groups that are gone, and put each group of `entries` in the place of what it held before.

        An error, also one of `entries` itself, leaves everything as it was. A group or unit that holds a lone surrogate
        raises ValueError; in a text one is replaced.
        """
        with self._changing:
            _write(self._index, gone_groups, entries)
            words = _newest(self._index)
            if words.deleted_share() > DELETED_SHARE:
                compact = _empty_index()
                _write(compact, (), words.entries())
                self._index, words = compact, _newest(compact)
            self._words = words


def tokens_of(question: str) -> list[str]:
    """Distinct tokens in order, without those of `ASKING` unless nothing else is left; of a long question the first."""
    return list(_tokens_of(question[:READ_CHARS]))


@lru_cache(64)  # a question is searched for several times
def _tokens_of(question: str) -> tuple[str, ...]:
    tokens = tuple(dict.fromkeys(_analyzer().analyze(_normal(question))))
    return (tuple(token for token in tokens if token not in ASKING) or tokens)[:READ_TOKENS]


def _any_of(tokens: Sequence[str]) -> Query:
    # Built here and not parsed: a question may hold quotes, colons and brackets.
    return Query.boolean_query(
        [(Occur.Should, Query.term_query(_schema(), "text", token, index_option="freq")) for token in tokens]
    )


def _filtered(query: Query, chosen: dict[str, Collection[str] | None]) -> Query:
    """`query` among the units whose fields are among those `chosen`; None chooses all."""
    clauses = [(Occur.Must, query)]
    for name, keys in chosen.items():
        if keys is not None:
            known = [key for key in keys if not SURROGATE.search(key)]  # no others can be stored
            among = Query.term_set_query(_schema(), name, known)
            clauses.append((Occur.Must, Query.const_score_query(among, 0.0)))
    return Query.boolean_query(clauses)


def _write(index: tantivy.Index, gone_groups: Iterable[str], entries: Iterable[Entry]) -> None:
    """All of it or nothing. The writer lives only here: an idle index has no threads."""
    writer = index.writer(heap_size=HEAP_BYTES, num_threads=1)
    try:
        _change(writer, gone_groups, entries)
        writer.commit()
    except BaseException:
        writer.rollback()
        raise
    finally:
        writer.wait_merging_threads()  # ends the writer, which gives its lock back


def _change(writer: tantivy.IndexWriter, gone_groups: Iterable[str], entries: Iterable[Entry]) -> None:
    for group in gone_groups:
        writer.delete_documents_by_term("group", group)
    replaced: set[str] = set()
    for entry in entries:
        if entry.group not in replaced:
            writer.delete_documents_by_term("group", entry.group)
            replaced.add(entry.group)
        fields = {"group": entry.group, "unit": entry.unit, "text": _normal(entry.text), "every": "1"}
        writer.add_document(tantivy.Document.from_dict(fields, _schema()))


def _newest(index: tantivy.Index) -> Words:
    index.reload()
    return Words(index.searcher())


def _empty_index() -> tantivy.Index:
    index = tantivy.Index(_schema())
    index.register_tokenizer("words", _analyzer())
    index.config_reader(reload_policy="manual")
    return index


@cache
def _schema() -> tantivy.Schema:
    """`every` holds the same in each unit, and so tells how many tantivy's statistics count."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("group", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("unit", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("text", stored=True, tokenizer_name="words", index_option="freq")
    builder.add_text_field("every", tokenizer_name="raw", index_option="basic")
    return builder.build()


@cache
def _analyzer() -> tantivy.TextAnalyzer:
    # Folded first: the lower case of a dotted capital I is two characters.
    tokens = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(TOKEN))
    return tokens.filter(Filter.ascii_fold()).filter(Filter.lowercase()).build()


def _normal(text: str) -> str:
    """One form for what reads alike (NFKC), which can be encoded: lone surrogates cannot."""
    return compatible(SURROGATE.sub("\ufffd", text))
