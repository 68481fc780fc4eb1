"""The lexicon against BM25 written out, across changes, filters, hostile questions and threads."""

import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramem import lexical
from loramem.lexical import Entry, Lexicon, Words
from tests.lexicons import found, of_texts

ANIMALS = st.sampled_from(["ant", "bee", "cat", "dog", "elk"])
TEXT = st.lists(ANIMALS, max_size=30).map(" ".join)
QUESTION = st.lists(ANIMALS | st.just("gnu"), min_size=1, max_size=6).map(" ".join)
GROUP = st.sampled_from(["g0", "g1", "g2"])
CHANGE = st.tuples(st.sets(GROUP), st.dictionaries(GROUP, st.lists(TEXT, max_size=2)))
"""Groups that are gone and texts of new ones; six units at most, so that one deleted is more than an eighth."""


def shares(question: str, texts: dict[str, str], counted: Sequence[str] = ()) -> dict[str, float]:
    """Okapi BM25 with k1 1.2 and b 0.75, over the most it can reach; `counted` are texts in the statistics alone.

    A word that no text holds counts at most 1.42 times one that a single text holds."""
    held = [Counter(text.split()) for text in [*texts.values(), *counted]]
    average = sum(bag.total() for bag in held) / max(1, len(held))

    def idf_of(holding: int) -> float:
        return math.log(1 + (len(held) - holding + 0.5) / (holding + 0.5))

    idf: dict[str, float] = {}
    for word in question.split():
        holding = sum(1 for bag in held if word in bag)
        idf[word] = idf_of(holding) if holding else min(idf_of(0), 1.42 * idf_of(1))
    found: dict[str, float] = {}
    for unit, text in texts.items():
        bag = Counter(text.split())
        length = 1.2 * (0.25 + 0.75 * bag.total() / average) if average else 0.0
        score = sum(idf[word] * 2.2 * bag[word] / (bag[word] + length) for word in idf if word in bag)
        if score:
            found[unit] = score / sum(2.2 * value for value in idf.values())
    return found


def units_of(model: dict[str, list[str]]) -> dict[str, str]:
    return {f"{group}-{number}": text for group, texts in model.items() for number, text in enumerate(texts)}


@settings(max_examples=60)
@given(changes=st.lists(CHANGE, min_size=1, max_size=5), question=QUESTION)
def test_shares_are_those_of_bm25_whatever_was_changed_before(
    changes: list[tuple[set[str], dict[str, list[str]]]], question: str
) -> None:
    lexicon, model = Lexicon(), dict[str, list[str]]()
    for gone, new in changes:
        new = {group: texts for group, texts in new.items() if texts}
        lexicon.change(gone, [Entry(unit[:2], unit, text) for unit, text in units_of(new).items()])
        model = {group: texts for group, texts in model.items() if group not in gone} | new
    hits = lexicon.snapshot().search(question, 100)
    assert dict(hits) == pytest.approx(shares(question, units_of(model)), rel=1e-5)
    assert [share for _, share in hits] == sorted((share for _, share in hits), reverse=True)
    assert all(0 < share <= 1 for _, share in hits)


def test_a_lone_text_is_found_as_surely_as_one_of_twenty() -> None:
    """Half of the words asked for stand in it; BM25 gives it two fifths of what it gives among twenty."""
    text, others = "ant bee " + "owl " * 10, ["fox " * 12] * 19
    ((_, alone),) = of_texts(text).search("ant bee cat dog", 9)
    ((_, of_twenty),) = of_texts(text, *others).search("ant bee cat dog", 9)
    assert alone == pytest.approx(of_twenty, rel=0.01)


@pytest.mark.parametrize(("texts", "is_capped"), [(2, True), (19, True), (20, False), (300, False)])
def test_from_twenty_texts_on_a_missing_word_counts_as_in_bm25(texts: int, is_capped: bool) -> None:
    by_one, by_none = (math.log(1 + (texts - held + 0.5) / (held + 0.5)) for held in (1, 0))
    ((_, share),) = of_texts("ant", *["fox"] * (texts - 1)).search("ant gnu", 9)
    of_bm25 = by_one / (2.2 * (by_one + by_none))
    assert share >= of_bm25 * (1 - 1e-6)
    assert (share > of_bm25 * (1 + 1e-4)) is is_capped


def test_a_few_deleted_units_count_in_the_statistics_and_are_not_found() -> None:
    lexicon = Lexicon()
    texts = {f"u{number}": f"mill {'wheel ' * number} roof" for number in range(30)}
    lexicon.change((), [Entry(unit, unit, text) for unit, text in texts.items()])
    counted = [texts.pop(unit) for unit in ("u0", "u1")]
    lexicon.change(["u0", "u1"], ())
    assert dict(lexicon.snapshot().search("mill wheel", 100)) == pytest.approx(
        shares("mill wheel", texts, counted), rel=1e-5
    )
    gone = ["u7", "u8", "u9"]
    lexicon.change(gone, ())
    rest = {unit: text for unit, text in texts.items() if unit not in gone}
    assert dict(lexicon.snapshot().search("mill wheel", 100)) == pytest.approx(shares("mill wheel", rest), rel=1e-5)


def test_long_texts_differ_by_an_eighth_at_most_from_what_was_written_out() -> None:
    texts = {f"u{number}": "mill " + "wheel " * (100 + 37 * number) for number in range(10)}
    assert dict(of_texts(*texts.values()).search("mill", 10)) == pytest.approx(shares("mill", texts), rel=1 / 8)


def test_a_text_of_nothing_but_the_question_comes_near_to_one() -> None:
    hits = of_texts("mill " * 200, "wheel " * 2000, "roof " * 2000).search("mill", 10)
    assert [unit for unit, _ in hits] == ["u0"]
    assert 0.98 < hits[0][1] <= 1


def test_a_word_that_no_text_holds_counts_against_all() -> None:
    words = of_texts("the mill", "a roof")
    [(_, alone)], [(_, beside)] = words.search("mill", 10), words.search("mill zeppelin", 10)
    assert beside < alone / 2


@pytest.mark.parametrize("limit", [-1, 0, 1, 2, 3, 10**12])
def test_no_more_than_the_limit_best_first(limit: int) -> None:
    words = of_texts("mill wheel roof", "mill mill", "mill roof")
    assert [unit for unit, _ in words.search("mill", limit)] == ["u1", "u2", "u0"][: max(0, limit)]


def test_nothing_is_found_in_an_empty_lexicon() -> None:
    assert Lexicon().snapshot().search("mill", 10) == []
    assert of_texts().search("mill", 10) == []
    assert of_texts("", "--").search("mill", 10) == []


def test_a_name_is_read_once_however_often_it_is_found() -> None:
    class Reading:
        """A searcher that notes what is read of it."""

        def __init__(self, searcher: Any) -> None:
            self.searcher, self.read = searcher, list[int]()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.searcher, name)

        def doc(self, address: Any) -> Any:
            self.read.append(address.doc)
            return self.searcher.doc(address)

    plain = of_texts("mill wheel", "mill roof", "wheel")
    reading = Reading(plain.searcher)
    words = Words(cast(Any, reading))
    for question in ("mill", "mill", "wheel roof"):
        assert words.search(question, 9) == plain.search(question, 9)
    assert sorted(reading.read) == [0, 1, 2]


# Changes.


def test_a_group_that_comes_again_is_replaced_whole() -> None:
    lexicon = Lexicon()
    lexicon.change((), [Entry("doc", "a", "mill"), Entry("doc", "b", "roof"), Entry("other", "c", "mill")])
    lexicon.change((), [Entry("doc", "d", "mill"), Entry("doc", "e", "mill")])
    assert found(lexicon.snapshot(), "mill roof") == {"c", "d", "e"}


def test_a_group_may_go_and_come_in_one_change() -> None:
    lexicon = Lexicon()
    lexicon.change((), [Entry("doc", "a", "mill")])
    lexicon.change(["doc", "unknown"], [Entry("doc", "b", "mill")])
    assert found(lexicon.snapshot(), "mill") == {"b"}


def test_names_of_groups_are_taken_as_they_are() -> None:
    lexicon = Lexicon()
    lexicon.change((), [Entry("Doc 1", "U-1", "mill"), Entry("doc 1", "u-1", "mill"), Entry("doc", "u", "mill")])
    lexicon.change(["doc 1"], ())
    assert found(lexicon.snapshot(), "mill") == {"U-1", "u"}
    assert [unit for unit, _ in lexicon.snapshot().search("mill", 9, units=["U-1"])] == ["U-1"]


def test_a_snapshot_stays_as_it_was() -> None:
    lexicon = Lexicon()
    lexicon.change((), [Entry("a", "1", "mill"), Entry("b", "2", "mill roof")])
    before = lexicon.snapshot()
    hits = before.search("mill roof", 10)
    lexicon.change(["a"], [Entry("c", "3", "mill")])
    lexicon.change(["b", "c"], ())
    assert before.search("mill roof", 10) == hits
    assert lexicon.snapshot().search("mill roof", 10) == []


def test_many_small_changes_keep_every_unit() -> None:
    """More than tantivy keeps as segments: it merges them."""
    lexicon = Lexicon()
    for number in range(30):
        lexicon.change((), [Entry(f"g{number}", f"u{number}", "mill")])
    assert found(lexicon.snapshot(), "mill") == {f"u{number}" for number in range(30)}
    assert lexicon.snapshot().searcher.num_segments < 10


def test_a_change_that_fails_changes_nothing() -> None:
    def broken() -> Iterator[Entry]:
        yield Entry("doc", "b", "mill")
        raise ConnectionError("the database is gone")

    lexicon = Lexicon()
    lexicon.change((), [Entry("doc", "a", "mill")])
    with pytest.raises(ConnectionError) as caught:
        lexicon.change((), broken())
    assert found(lexicon.snapshot(), "mill") == {"a"}
    lexicon.change((), [Entry("other", "c", "mill")])
    assert found(lexicon.snapshot(), "mill") == {"a", "c"}, caught  # the error, with its frames, is still held


def test_a_compaction_that_fails_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lexicon = Lexicon()
    lexicon.change((), [Entry(f"group{number}", f"unit{number}", "larch") for number in range(16)])
    stock, written = lexical._write, list[Any]()

    def write(*arguments: Any) -> None:
        written.append(arguments)
        if len(written) == 2:
            raise RuntimeError("no more threads")
        stock(*arguments)

    monkeypatch.setattr(lexical, "_write", write)
    gone = [f"group{number}" for number in range(8)]
    with pytest.raises(RuntimeError, match="threads"):
        lexicon.change(gone, [])
    assert len(lexicon.snapshot().search("larch", 20)) == 16
    lexicon.change(gone, [Entry("new", "new", "larch")])
    assert {unit for unit, _ in lexicon.snapshot().search("larch", 20)} == {"new", *(f"unit{n}" for n in range(8, 16))}


def test_a_name_that_cannot_be_encoded_is_refused() -> None:
    lexicon = Lexicon()
    for entry in (Entry("\ud800", "a", "mill"), Entry("a", "\ud800", "mill")):
        with pytest.raises(ValueError):
            lexicon.change((), [entry])
    assert found(lexicon.snapshot(), "mill") == set()


# Filters.


@settings(max_examples=40)
@given(texts=st.lists(TEXT, min_size=1, max_size=12), question=QUESTION, data=st.data())
def test_filters_choose_units_and_leave_their_scores(texts: list[str], question: str, data: st.DataObject) -> None:
    lexicon = Lexicon()
    lexicon.change((), [Entry(f"g{number % 4}", f"u{number}", text) for number, text in enumerate(texts)])
    words = lexicon.snapshot()
    everything = dict(words.search(question, 100))
    groups = data.draw(st.none() | st.sets(st.sampled_from(["g0", "g1", "g2", "g3", "unknown"])))
    units = data.draw(st.none() | st.sets(st.sampled_from([f"u{number}" for number in range(14)])))
    expected = {
        unit: share
        for unit, share in everything.items()
        if (groups is None or f"g{int(unit[1:]) % 4}" in groups) and (units is None or unit in units)
    }
    assert dict(words.search(question, 100, groups=groups, units=units)) == pytest.approx(expected, rel=1e-6)


def test_thousands_may_be_chosen() -> None:
    lexicon = Lexicon()
    lexicon.change((), [Entry(f"g{number // 2}", f"u{number}", f"mill n{number}") for number in range(6000)])
    words = lexicon.snapshot()
    chosen = {f"u{number}" for number in range(0, 6000, 2)}
    hits = words.search("mill", 6000, groups=[f"g{number}" for number in range(2500)], units=chosen)
    assert {unit for unit, _ in hits} == {f"u{number}" for number in range(0, 5000, 2)}


def test_a_filter_may_hold_any_string() -> None:
    words = of_texts("mill", "mill")
    names = ["\ud800", "\0", '"', "g1", "", "x" * 100_000]
    assert [unit for unit, _ in words.search("mill", 9, groups=names)] == ["u1"]
    assert words.search("mill", 9, groups=["\ud800"]) == []


# Threads.


def test_each_answer_is_of_one_state() -> None:
    lexicon, done = Lexicon(), threading.Event()

    def state(number: int) -> list[Entry]:
        return [Entry(f"g{unit}", f"{number}-{unit}", "mill " * (unit + 1)) for unit in range(10)]

    def change() -> None:
        try:
            for number in range(1, 60):
                lexicon.change((), state(number))
        finally:
            done.set()

    def search() -> None:
        stop = False
        while not stop:
            stop = done.is_set()
            hits = lexicon.snapshot().search("mill", 100)
            assert len(hits) == 10
            assert len({unit.split("-")[0] for unit, _ in hits}) == 1

    lexicon.change((), state(0))
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(search) for _ in range(3)]
        for future in [pool.submit(change), *running]:
            future.result()
    assert {unit.split("-")[0] for unit in found(lexicon.snapshot(), "mill")} == {"59"}


def test_changes_at_the_same_time_all_count() -> None:
    lexicon = Lexicon()

    def change(thread: int) -> None:
        for number in range(10):
            lexicon.change((), [Entry(f"{thread}-{number}", f"{thread}-{number}", "mill")])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(change, thread) for thread in range(4)]:
            future.result()
    assert len(found(lexicon.snapshot(), "mill")) == 40
