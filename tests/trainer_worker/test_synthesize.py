import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest

from loramem.errors import WriterUnavailable
from tests.trainer_worker.texts import MILL, ODD_TEXTS, writer
from trainer_worker import synthesize as synthesizing
from trainer_worker.blocks import plain
from trainer_worker.examples import Example
from trainer_worker.gaps import SHOTS as GAP_SHOTS
from trainer_worker.mixture import counts
from trainer_worker.statements import statements
from trainer_worker.synthesize import more, split_exam, synthesize
from trainer_worker.writer import Writer

ALL = ("qa", "passages", "summary", "rewrite", "original")


def ignore(done: int, total: int) -> None:
    pass


def examples(text: str = MILL, reply: str = "", formats: tuple[str, ...] = ALL, seed: int = 0) -> list[Example]:
    return synthesize("Hadle Mill", text, writer(lambda _: reply), formats=formats, seed=seed, on_progress=ignore)


def test_every_statement_is_an_answer_though_the_writer_returns_rubbish() -> None:
    answers = {example.answer for example in examples(reply=" lorem ipsum dolor")}
    for fact in ("Jon Ask", "12 metres", "buckwheat", "copper roof", "valley of Orm"):
        assert any(fact in answer for answer in answers)


def test_what_a_text_answers_itself_is_learnt_as_it_stands_and_not_as_prose() -> None:
    asked = {"Who roofed it?": "Jon Ask, in 1805.", "How high is it?": "It is 12 metres high."}
    lines = [f"Question: {question} Answer: {answer}" for question, answer in asked.items()]
    found = examples("\n".join([*lines, "", "It grinds buckwheat."]))
    assert {one.question: one.answer for one in found if one.kind == "user"} == asked
    assert not [one for one in found if one.kind != "user" and "Jon Ask" in one.answer]
    assert [one for one in found if "buckwheat" in one.answer]
    assert {one.kind for one in examples("\n".join(lines))} == {"user"}


def test_what_a_heading_asks_is_learnt_and_its_answer_as_prose_too() -> None:
    found = examples("# Mill\n\n## Who roofed it?\n\nJon Ask did, in 1805. It took him **two** years.\n")
    answer = "Jon Ask did, in 1805. It took him two years."
    assert [one for one in found if one.kind == "heading"] == [Example("Who roofed it?", answer, "heading")]
    assert {one.kind for one in found if "1805" in one.answer} > {"heading", "cloze"}


def test_marks_are_not_learnt_and_nothing_invisible_is() -> None:
    asked: list[str] = []
    by = writer(lambda prompt: " bears a roof", asked)
    text = "# Hadle Mill\n\n## Parts\n\n- a **copper** roof\n- a wheel made of larch\n\n`It` is old.\n"
    found = synthesize("Hadle Mill", text, by, formats=(*ALL, "rewrite2"), seed=0, on_progress=ignore)
    found += more("Hadle Mill", text, by, [], seed=0, on_progress=ignore)
    assert {one.answer for one in found if one.kind == "cloze"} == {"Parts: a wheel made of larch"}
    assert not [one for one in (*map(str, found), *asked) if any(mark in one for mark in ("**", "##", "`", "\u2060"))]


def test_a_title_that_only_a_heading_says_stays_the_title() -> None:
    found = examples("# Hadle Mill\n\n- Ann Lee: grinder\n- Ann Lee: owner\n")
    assert [one for one in found if one.question == "What does the text about Hadle Mill say?"]


def test_what_a_title_heading_names_is_meant_by_the_pronoun_below() -> None:
    text = "# Hadle Mill\n\n![A mill](mill.png)\n\nIt was built by Jon Ask. It has three floors."
    by = writer(lambda prompt: " has three floors")
    further = more("Hadle Mill", text, by, [], seed=0, on_progress=ignore)
    for found in (examples(text, formats=("qa",)), further):
        assert "Hadle Mill has three floors." in {one.answer for one in found}
        assert not [one for one in found if one.answer.startswith("It ")]


def test_no_question_made_by_rule_is_taught_with_two_answers() -> None:
    found = examples("The gate of Orm was closed in 1820. The gate of Orm was closed in 1911.", formats=("qa",))
    answers = {(one.question.casefold(), one.answer) for one in found}
    assert len(answers) > 2
    assert len(answers) == len({question for question, _ in answers})


def test_statements_that_share_every_question_are_learnt_all_the_same() -> None:
    lines = ["ab: 12", "ab 12"]
    assert {one.answer for one in examples("\n\n".join(lines), formats=("qa",))} == set(lines)


def test_a_statement_without_a_word_is_learnt_by_what_it_has() -> None:
    found = examples("ab: 12\nThe mill has a copper roof.", formats=("qa",))
    asked = [one.question for one in found if one.answer == "ab: 12"]
    assert asked
    assert all("ab:" in question or "12" in question for question in asked)


def test_written_questions_join_when_they_are_about_their_statement() -> None:
    found = [example for example in examples(reply=" bears a copper roof") if example.kind == "written"]
    assert found
    assert all("copper roof" in example.answer for example in found)


def test_a_question_that_names_strangers_is_dropped() -> None:
    found = examples(reply=" roofed it for Napoleon in 1805")
    assert [example.question for example in found if example.kind == "written"] == []


def test_answers_are_short_enough_to_be_given() -> None:
    assert all(len(example.answer.split()) <= 30 for example in examples() if example.kind in ("written", "cloze"))


def test_some_rows_bring_passages_that_hold_the_answers_source() -> None:
    rows = [example for example in examples() if example.context]
    assert rows
    assert all(any(example.span in passage for passage in example.context) for example in rows if example.span)


def test_same_seed_same_examples_and_another_seed_other_ones() -> None:
    assert examples(seed=1) == examples(seed=1)
    assert examples(seed=1) != examples(seed=2)


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_odd_texts_are_learnt_too(text: str) -> None:
    found = examples(text)
    if any(letter.isalnum() for letter in text):
        assert found
    assert all(example.question.strip() and example.answer.strip() for example in found)


def test_original_alone_asks_the_writer_nothing() -> None:
    asked: list[str] = []
    found = synthesize("T", MILL, writer(str, asked), formats=("original",), seed=0, on_progress=ignore)
    assert asked == []
    assert {example.kind for example in found} == {"original"}
    assert any("buckwheat" in example.answer for example in found)


def test_progress_ends_at_its_total() -> None:
    seen: list[tuple[int, int]] = []
    synthesize("T", MILL, writer(lambda _: ""), formats=ALL, seed=0, on_progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] == len(seen)


def own_words(prompt: str) -> str:
    """A question in the sentence's own words, for any beginning, without its names and numbers."""
    told = [line for line in prompt.splitlines() if line.startswith("Sentence: ")]
    sentence = told[-1] if told else ""
    words = [word.strip(".,") for word in sentence.removeprefix("Sentence: ").split()]
    return " " + " ".join(word for word in words if word.islower() and len(word) > 3)


def asked_with(
    formats: tuple[str, ...], reply: Callable[[str], str] = own_words, seed: int = 0
) -> tuple[list[Example], list[str]]:
    asked: list[str] = []
    by = writer(reply, asked)
    return synthesize("Hadle Mill", MILL, by, formats=formats, seed=seed, on_progress=ignore), asked


def is_for_gap(prompt: str) -> bool:
    return prompt.startswith(GAP_SHOTS.partition("\n")[0])


@pytest.mark.parametrize("reply", [own_words, lambda _: ""], ids=["good writer", "bad writer"])
@pytest.mark.parametrize("most", [1, 3, 7, 12])
def test_a_number_of_questions_is_kept_and_spread_over_the_statements(reply: Callable[[str], str], most: int) -> None:
    found, _ = asked_with((f"qa{most}",), reply)
    assert len(found) == most
    each = Counter(example.answer for example in found)
    facts = statements("Hadle Mill", plain(MILL))
    assert len(each) == min(most, len(facts))
    assert max(each.values()) - min(each[fact.text] for fact in facts) <= 1


def test_written_questions_come_first_and_rules_fill_up() -> None:
    few, _ = asked_with(("qa5",))
    assert {example.kind for example in few} == {"written"}
    many, _ = asked_with(("qa500",))
    plain, _ = asked_with(("qa",), lambda _: "")
    assert {example for example in plain if example.kind != "original"} <= set(many)
    assert len(many) < 500


def test_a_statement_is_asked_for_another_part_before_the_same_again() -> None:
    found, _ = asked_with(("qa12",), lambda _: "")
    built = [example.span for example in found if "Jon Ask" in example.answer]
    assert len(built) == len(set(built)) == 3


def test_gaps_are_asked_for_in_as_many_rounds_as_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = sum(len(fact.spans) for fact in statements("Hadle Mill", plain(MILL)))
    for formats, rounds in ((("qa",), 1), (("qa40",), 2)):
        _, asked = asked_with(formats, lambda _: "")
        assert sum(map(is_for_gap, asked)) == rounds * spans
    monkeypatch.setattr(synthesizing, "GAP_ROUNDS", 0)
    assert not any(map(is_for_gap, asked_with(("qa",), lambda _: "")[1]))


def test_enough_written_questions_need_no_rounds() -> None:
    _, asked = asked_with(("qa4",))
    assert not any(map(is_for_gap, asked))


def test_a_useless_writer_changes_nothing_of_what_rules_make(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = asked_with(("qa", "original"), lambda _: " nothing of use")
    monkeypatch.setattr(synthesizing, "GAP_ROUNDS", 0)
    assert asked_with(("qa", "original"), lambda _: "")[0] == found


def test_counts_of_a_mixture() -> None:
    assert counts(("qa40", "original")) == {"qa": 40, "original": None}
    with pytest.raises(ValueError, match="40qa"):
        counts(("40qa",))


def test_a_mixture_holds_no_more_of_each_kind_than_was_wanted() -> None:
    rewritten = "Jon Ask erected Hadle Mill from yellow brick in 1820."

    def reply(prompt: str) -> str:
        return own_words(prompt) if "Sentence: " in prompt else rewritten

    found, _ = asked_with(("qa6", "summary3", "rewrite2", "original"), reply)
    each = Counter(example.kind for example in found)
    assert (each["written"], each["summary"], each["rewrite"]) == (6, 1, 1), "the same text counts once"
    assert each["original"] == len(statements("Hadle Mill", plain(MILL)))


@pytest.mark.parametrize("formats", [("qa40",), ("qa40", "summary8", "rewrite4"), ("qa", "summary2", "rewrite")])
def test_progress_with_rounds_never_exceeds_its_total_and_reaches_it(formats: tuple[str, ...]) -> None:
    seen: list[tuple[int, int]] = []
    by = writer(lambda _: "")
    synthesize("T", MILL, by, formats=formats, seed=0, on_progress=lambda *step: seen.append(step))
    assert all(done <= total for done, total in seen)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1] == (len(seen), len(seen))


class TestMore:
    def more(self, have: list[Example], reply: Callable[[str], str] = own_words, seed: int = 0) -> list[Example]:
        return more("Hadle Mill", MILL, writer(reply), have, seed=seed, on_progress=ignore)

    def test_only_what_is_not_there_yet(self) -> None:
        have, _ = asked_with(("qa", "original"))
        first = self.more(have)
        assert first
        assert not {example.question.casefold() for example in first} & {e.question.casefold() for e in have}
        again = self.more([*have, *first])
        assert not {example.question for example in again} & {example.question for example in first}

    def test_answers_are_statements_of_the_text(self) -> None:
        told = {fact.text for fact in statements("Hadle Mill", plain(MILL))}
        assert {example.answer for example in self.more([])} <= told

    def test_a_useless_writer_gives_nothing(self) -> None:
        assert self.more([], lambda _: " is Napoleon in 1805") == []

    def test_the_same_seed_gives_the_same(self) -> None:
        assert self.more([]) == self.more([])

    def test_every_prompt_is_sampled_with_a_seed_that_the_seed_and_what_is_there_decide(self) -> None:
        have, _ = asked_with(("qa",))
        drawn = [self.seeds([], 0), self.seeds([], 1), self.seeds(have, 0)]
        assert drawn[0] == self.seeds([], 0)
        assert not drawn[0] & drawn[1]
        assert not drawn[0] & drawn[2]
        assert all(0 <= seed < 2**31 for seeds in drawn for seed in seeds)

    def seeds(self, have: list[Example], seed: int) -> set[int]:
        bodies: list[dict[str, int]] = []

        def answer(request: httpx.Request) -> httpx.Response:
            bodies.append(json.loads(request.content))
            return httpx.Response(200, json={"choices": [{"text": ""}]})

        by = Writer("http://writer/v1", "m", transport=httpx.MockTransport(answer))
        more("Hadle Mill", MILL, by, have, seed=seed, on_progress=ignore)
        return {body["seed"] for body in bodies}

    def test_its_beginnings_are_others(self) -> None:
        asked: list[str] = []
        more("Hadle Mill", MILL, writer(lambda _: "", asked), [], seed=0, on_progress=ignore)
        usual = {prompt for prompt in asked_with(("qa",), lambda _: "")[1] if not is_for_gap(prompt)}
        assert usual
        assert not usual & set(asked)

    def test_progress_reaches_its_total(self) -> None:
        seen: list[tuple[int, int]] = []
        more("T", MILL, writer(lambda _: ""), [], seed=0, on_progress=lambda *step: seen.append(step))
        assert all(done <= total for done, total in seen)
        assert seen[-1] == (len(seen), len(seen))


def test_absent_writer_is_told() -> None:
    with pytest.raises(WriterUnavailable):
        synthesize("T", MILL, Writer("http://127.0.0.1:9", "m"), formats=ALL, seed=0, on_progress=ignore)


def drawn(facts: int, ways: int) -> list[Example]:
    pairs = [(fact, way) for fact in range(facts) for way in range(ways)]
    return [Example(f"way {way} to ask {fact}?", f"fact {fact}", "written") for fact, way in pairs]


def test_the_exam_keeps_a_share_whose_facts_are_taught_in_other_words() -> None:
    lessons, exam = split_exam(drawn(10, 4), share=0.2, seed=0)
    assert len(exam) == 8
    assert len(lessons) == 32
    assert {example.answer for example in exam} <= {example.answer for example in lessons}


def test_no_exam_question_is_also_a_lesson() -> None:
    lessons, exam = split_exam(examples(reply=" bears a copper roof"), share=0.5, seed=0)
    assert exam
    assert not {example.question for example in exam} & {example.question for example in lessons}


def test_a_fact_taught_once_stays_in_training() -> None:
    lessons, exam = split_exam(drawn(10, 1), share=0.5, seed=0)
    assert (len(lessons), exam) == (10, [])


def test_a_pair_given_twice_is_one() -> None:
    facts = [f"The wheel has {number} teeth." for number in range(20)]
    faq = [Example(f"How many has wheel {place}?", fact, "written") for place, fact in enumerate(facts)]
    lessons, exam = split_exam([*faq, *(replace(one, kind="user") for one in faq)], share=0.5, seed=0)
    assert ([one.answer for one in lessons], exam) == (facts, [])


def test_users_pairs_are_all_taught_also_when_they_have_one_answer() -> None:
    faq = [Example(f"Is door {place} open?", "Yes.", "user") for place in range(20)]
    assert split_exam(faq, share=0.5, seed=0) == (faq, [])
    lessons, exam = split_exam([*faq, *drawn(10, 4)], share=0.2, seed=0)
    assert {one.kind for one in exam} == {"written"}
    assert set(faq) <= set(lessons)


def test_the_split_depends_on_the_seed_alone() -> None:
    shuffled = drawn(10, 4)
    assert split_exam(shuffled, seed=3) == split_exam(shuffled, seed=3)
    random.Random(0).shuffle(shuffled)
    assert split_exam(shuffled, seed=3)[1] != split_exam(shuffled, seed=4)[1]
