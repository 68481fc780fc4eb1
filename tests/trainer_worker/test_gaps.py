"""What no question asks for is asked for again, and nothing else is."""

import json
import random
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.trainer_worker.texts import MILL
from trainer_worker.angles import angles
from trainer_worker.asking import Asking
from trainer_worker.blocks import plain
from trainer_worker.cloze import MAX_KEYWORDS, cloze_questions, keyword_questions
from trainer_worker.examples import Example
from trainer_worker.gaps import MOST_GAPS, Gap, beginnings, clause_of, fill_gaps, gaps
from trainer_worker.questions import Judge, drafts, speaks_of_text
from trainer_worker.statements import Statement, statements
from trainer_worker.writer import Writer

FACTS = statements("Hadle Mill", plain(MILL))
BUILT, WHEEL, ROOF = FACTS[1:4]
(CLOSING,) = statements("", plain("The gate closes at 9:30."))


def asking(reply: Callable[[str], str], asked: list[dict[str, object]]) -> Asking:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body)
        return httpx.Response(200, json={"choices": [{"text": reply(body["prompt"])}]})

    by = Writer("http://writer/v1", "m", most_at_once=1, transport=httpx.MockTransport(answer))
    return Asking(by, lambda answered, planned: None, seed=0)


def always(text: str) -> Callable[[str], str]:
    return lambda _: text


def last(prompt: str, name: str) -> str:
    """The value of the prompt's last line `name: value`."""
    return [line for line in prompt.splitlines() if line.startswith(f"{name}:")][-1].removeprefix(f"{name}:").strip()


def written(statement: Statement, span: str, question: str = "q?") -> Example:
    return Example(question, statement.text, "written", span)


def all_but(*open_gaps: tuple[Statement, str]) -> list[Example]:
    every = [(fact, span.text) for fact in FACTS for span in fact.spans]
    return [written(*pair) for pair in every if pair not in open_gaps]


def found(have: list[Example], reply: Callable[[str], str], rounds: int = 2) -> tuple[list[Example], list[str]]:
    bodies: list[dict[str, object]] = []
    examples = fill_gaps(FACTS, have, Judge(FACTS), asking(reply, bodies), rounds=rounds)
    return examples, [str(body["prompt"]) for body in bodies]


class TestGaps:
    def test_spans_that_nobody_asks_for_and_statements_without_a_question_first(self) -> None:
        have = [example for example in all_but((BUILT, "1820")) if example.answer != ROOF.text]
        left = [(gap.statement, gap.span.text if gap.span else None) for gap in gaps(FACTS, have)]
        assert left == [(ROOF, "1911"), (BUILT, "1820")]

    def test_questions_made_by_rule_close_no_gap(self) -> None:
        ruled = [Example(example.question, example.answer, "cloze", example.span) for example in all_but()]
        assert len(gaps(FACTS, ruled)) == len(all_but())

    def test_a_statement_without_parts_is_a_gap_until_it_has_a_question(self) -> None:
        plain = Statement("The river is slow.", "", (), ("The river is slow.",))
        assert gaps([plain], []) == [Gap(plain, None)]
        assert gaps([plain], [written(plain, "")]) == []

    def test_each_statements_first_gap_comes_before_any_second(self) -> None:
        owners = [gap.statement for gap in gaps(FACTS, [])]
        assert owners[: len(FACTS)] == FACTS


class TestRounds:
    def test_the_writer_is_asked_for_the_gap_alone_and_told_the_answer(self) -> None:
        _, prompts = found(all_but((BUILT, "Jon Ask")), lambda _: "", rounds=1)
        assert [(last(prompt, "Sentence"), last(prompt, "Answer")) for prompt in prompts] == [(BUILT.text, "Jon Ask")]

    def test_a_good_question_ends_the_rounds(self) -> None:
        examples, prompts = found(all_but((BUILT, "Jon Ask")), lambda _: " built of brick")
        assert len(prompts) == 1
        assert [(example.answer, example.span) for example in examples] == [(BUILT.text, "Jon Ask")]

    def test_a_second_round_begins_otherwise_and_samples_anew(self) -> None:
        bodies: list[dict[str, object]] = []
        have = all_but((BUILT, "Jon Ask"))
        assert fill_gaps(FACTS, have, Judge(FACTS), asking(lambda _: "", bodies), rounds=2) == []
        assert {body["temperature"] for body in bodies} == {0.7}
        assert len({last(str(body["prompt"]), "Question") for body in bodies}) == 2
        assert len({body["seed"] for body in bodies}) == 2

    @pytest.mark.parametrize(
        "reply",
        [
            " built by Jon Ask of brick",  # gives the answer away
            " built for Napoleon from brick",  # a stranger
            " built in this article from brick",  # needs the text at hand
            " roofed with copper",  # is about another statement
            "",
        ],
    )
    def test_other_questions_are_refused(self, reply: str) -> None:
        assert found(all_but((BUILT, "Jon Ask")), lambda _: reply)[0] == []

    def test_a_question_must_say_what_happened(self) -> None:
        owner = next(span for span in WHEEL.spans if span.text == "Mira Toll")
        facts = [Statement("Mira Toll owns Orm Barn.", "", (owner,), ("Mira Toll owns Orm Barn.",))]
        for reply, kept in ((" of Orm Barn", 0), (" owns Orm Barn", 1)):
            assert len(fill_gaps(facts, [], Judge(facts), asking(always(reply), []), rounds=1)) == kept

    def test_no_question_twice(self) -> None:
        have = all_but((BUILT, "Jon Ask"))
        (first,) = fill_gaps(FACTS, have, Judge(FACTS), asking(lambda _: " built", []), rounds=1)
        judge = Judge(FACTS, asked=[first.question.upper()])
        assert fill_gaps(FACTS, have, judge, asking(lambda _: " built", []), rounds=1) == []

    def test_a_round_has_a_limit(self) -> None:
        days = [f"{day} {month} {1800 + day}" for day in range(1, 29) for month in ("May", "June", "July")]
        many = statements("", plain("\n".join(f"The ship sailed on {day}." for day in days)))
        bodies: list[dict[str, object]] = []
        fill_gaps(many, [], Judge(many), asking(lambda _: "", bodies), rounds=1)
        assert len(many) > MOST_GAPS == len(bodies)

    def test_enough_is_enough(self) -> None:
        bodies: list[dict[str, object]] = []
        have = all_but((BUILT, "Jon Ask"))
        assert fill_gaps(FACTS, have, Judge(FACTS), asking(str, bodies), rounds=2, enough=len(have)) == []
        assert bodies == []


@pytest.mark.parametrize(
    ("statement", "span", "beginning"),
    [
        (BUILT, "1820", " In which year was Hadle Mill"),
        (BUILT, "Jon Ask", " By whom was Hadle Mill"),
        (WHEEL, "12 metres", " How many metres"),
        (WHEEL, "Mira Toll", " Who"),
        (ROOF, "1911", " In which year"),
        (CLOSING, "9:30", " At what time"),
    ],
)
def test_the_beginning_fits_what_is_asked_for(statement: Statement, span: str, beginning: str) -> None:
    wanted = next(found for found in statement.spans if found.text == span)
    assert beginnings(Gap(statement, wanted))[0] == beginning


@pytest.mark.parametrize(
    ("statement", "clause"),
    [
        ("The harbour of Orm was dug in 1874.", " was the harbour of Orm"),
        ("In 1874 the harbour was dug.", ""),
        ("Jon Ask, a miller, was born in Orm.", ""),
        ("Herring is smoked.", " is Herring"),
        ("The wheel turns and is made of larch.", ""),
    ],
)
def test_a_clause_is_turned_round_only_where_it_begins_the_statement(statement: str, clause: str) -> None:
    assert clause_of(statement) == clause


@pytest.mark.parametrize(
    ("question", "refused"),
    [
        ("Who wrote this article?", True),
        ("What does the passage say of Orm?", True),
        ("What is shown in the following short text?", True),
        ("Which sentences does this document hold?", True),
        ("What does the text about Orm say?", False),
        ("On which paper was it printed?", False),
    ],
)
def test_questions_on_a_text_at_hand_are_told(question: str, refused: bool) -> None:
    assert speaks_of_text(question, "Orm is a river.") is refused


def test_the_paper_of_a_statement_may_be_asked_for() -> None:
    assert not speaks_of_text("Who made the paper?", "The paper was made by Mira Toll.")
    assert speaks_of_text("Who made this paper?", "The paper was made by Mira Toll.")


class TestSeveralSentences:
    """`It was burned down` is asked about, and is the answer, together with the sentence before."""

    TEXT = "The tower of Orm was finished in 1820. It was burned down in 1911. The river is slow."
    FACTS = statements("", plain(TEXT))

    def test_the_writer_reads_both_and_both_are_the_answer(self) -> None:
        bodies: list[dict[str, object]] = []
        first, *_ = fill_gaps(self.FACTS, [], Judge(self.FACTS), asking(always(" burned"), bodies), rounds=1)
        both = "The tower of Orm was finished in 1820. It was burned down in 1911."
        assert both in [last(str(body["prompt"]), "Sentence") for body in bodies]
        assert first.answer == both

    def test_each_sentence_has_its_share_of_beginnings(self) -> None:
        counts = Counter(draft.statement.text for draft in drafts(self.FACTS, most=2))
        assert list(counts.values()) == [4, 2]

    def test_in_place_questions_are_of_one_sentence(self) -> None:
        asked = [example.question for example in cloze_questions(self.FACTS[0])]
        assert "The tower of Orm was finished in which year?" in asked
        assert "It was burned down in which year?" in asked

    def test_each_sentence_has_its_share_of_keywords(self) -> None:
        text = "Orm counted apples bells carts doors eels figs geese herons. They sold ink jars kites lamps."
        many = statements("", plain(text))
        anchors = list(keyword_questions(many[0], "", (), random.Random(0)))
        assert len(many) == 1
        assert MAX_KEYWORDS < len(anchors) <= 2 * MAX_KEYWORDS


class TestAngles:
    TEXT = (
        "The chamber of Orm was closed because the floor had rotted. The wheel of Hadle Mill measures 12 metres. "
        "The mast of the Alder measures 22 metres."
    )

    def of(self, reply: dict[str, str], have: tuple[Example, ...] = ()) -> list[Example]:
        facts = statements("", plain(self.TEXT))

        def answer(prompt: str) -> str:
            return next((text for part, text in reply.items() if part in prompt), "")

        return angles(facts, have, Judge(facts), asking(answer, []))

    def test_a_reason_is_asked_for_without_being_told(self) -> None:
        assert [e.question for e in self.of({"the purpose": " shut"})] == ["Why was the chamber of Orm shut?"]
        assert self.of({"the purpose": " rotted"}) == []

    def test_a_comparison_names_both_and_is_answered_by_both(self) -> None:
        reply = " is longer, the wheel of Hadle Mill or the mast of the Alder"
        (row,) = self.of({"compares the two": reply})
        assert "12 metres" in row.answer
        assert "22 metres" in row.answer

    @pytest.mark.parametrize(
        "reply",
        [
            " is longer, the wheel or the bridge",  # not the second
            " is longer, the wheel or the mast of 22 metres",  # gives a figure away
            " wheel and mast are long",  # no alternative
            " is longer, the wheel of Paris or the mast",  # a stranger
        ],
    )
    def test_other_comparisons_are_refused(self, reply: str) -> None:
        assert self.of({"compares the two": reply}) == []

    def test_the_same_in_other_words_asks_for_the_same(self) -> None:
        closed = statements("", plain(self.TEXT))[0]
        have = (Example("What rotted in the chamber of Orm?", closed.text, "written", "the floor"),)
        (row,) = self.of({"other words": " part of the chamber had rotted"}, have)
        assert (row.span, row.answer) == ("the floor", closed.text)
        assert self.of({"other words": " floor of the chamber had rotted"}, have) == []
        assert self.of({"other words": " mast is in the Alder"}, have) == []
