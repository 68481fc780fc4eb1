"""Markdown as text that can be learnt."""

import json
from collections.abc import Iterator

import pytest

from tests.rules import ROOT
from tests.trainer_worker.texts import ODD_TEXTS
from trainer_worker.blocks import Block, plain
from trainer_worker.cloze import cloze_questions
from trainer_worker.marks import read
from trainer_worker.statements import Statement, statements

CODE = """#!/usr/bin/env python
# A comment
import os

def f(*args, **kwargs):
    x = a[0](1)
    # another
    return f(*args, **kwargs) if C# else 2 ** 3 * 4 ** 5
"""
COMMENT = "/**\n * Adds two.\n * - both\n */\nint add(int *a, int *b) { return *a + *b; }\n"
LOG = """2024-01-01 12:00:00 INFO *** started *** pid=12
[main] INFO: done
[1]: a note
1. e4 e5
2. Nf3 Nc6
-5
+3
Name,Age
Ann,3
"""


def paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in read(text).text.split("\n\n") if paragraph.strip()]


def texts() -> Iterator[str]:
    yield (ROOT / "deploy/sample.txt").read_text()
    for sheet in sorted((ROOT / "benchmarks/sheets").glob("*.json")):
        yield json.loads(sheet.read_text())["text"]
    yield from (text for name, text in ODD_TEXTS.items() if name != "list")
    yield from (CODE, COMMENT, LOG)


@pytest.mark.parametrize("text", list(texts()))
def test_a_text_without_marks_is_as_it_was(text: str) -> None:
    assert [block.text.strip("\n") for block in read(text).blocks] == [text.strip("\n")]


@pytest.mark.parametrize(
    "unseen",
    [
        "<!-- one\n\n- two -->",
        "<details>",
        "<p align='center'><img src='x'></p>",
        "> [!NOTE]",
        ":::caution",
        "[3.2.0]: https://a.example/b",
        "***",
        "- - -",
        "[![Build](b.svg)](https://ci)",
        "# Title",
        "Title\n=====",
        "## ???",
    ],
)
def test_what_a_reader_does_not_see_and_headings_go(unseen: str) -> None:
    assert paragraphs(f"It is red.\n\n{unseen}\n\nIt is old.") == ["It is red.", "It is old."]


def test_front_matter_goes() -> None:
    assert paragraphs("---\ntitle: Mill\ntags: [a, b]\n---\nIt is red.\n") == ["It is red."]


def test_the_first_of_several_records_is_no_front_matter() -> None:
    text = "---\nName: Ann\nPhone: 123\n---\nName: Bob\nPhone: 456\n---\nName: Cid\n"
    assert [one for one in learnt(text) if one.text == "Name: Ann"]


def test_a_sentence_above_a_rule_is_no_heading() -> None:
    for said in ("Ann is old.", "Ann is old!", "Ann is old,"):
        assert paragraphs(f"So.\n\n{said}\n---\n\nSo.") == ["So.", said, "So."]


@pytest.mark.parametrize("text", ["# Title", "# Title\n\n## And another\n", "---\na: b\n---\n", "![x](y)"])
def test_what_would_leave_nothing_is_as_it_was(text: str) -> None:
    assert read(text) == plain(text)


def test_code_in_fences_is_left_alone() -> None:
    code = "# not a heading\n- *no* `item`\n| a |\n|---|\n<div>\n"
    for ticks in ("```", "~~~~"):
        assert read(f"{ticks}\n{code}{ticks}\nIt is *red*.\n").blocks == (Block(code), Block("It is red."))
    assert read(f"It is *red*.\n```sh\n{code}").blocks == (Block("It is red."), Block(code))


def test_the_end_of_code_that_began_before_the_text_opens_none() -> None:
    text = "x = 1\n```\n\nIt is *red*.\n\n```sh\nrun *x*\n```\n"
    assert paragraphs(text) == ["x = 1", "It is red.", "run *x*"]


class TestItems:
    def test_an_item_says_what_its_headings_say(self) -> None:
        text = "# Ledger\n\n## [3.2.0] - 2024-04-18\n\n### Added\n\n- Export\n- Dark mode\n\n## 2. Old:\n\n* None\n"
        lead = "3.2.0 - 2024-04-18 – Added"
        assert paragraphs(text) == [f"{lead}: Export", f"{lead}: Dark mode", "Old: None"]

    def test_a_sentence_that_ends_in_a_colon_leads_in_its_heading_s_place(self) -> None:
        text = "## Rules\n\nHours are 10 to 15. **You must:**\n\n- be kind,\n- be early, and\n\nSo.\n\n- Rest"
        assert paragraphs(text) == [
            "Rules: Hours are 10 to 15.",
            "You must: be kind",
            "You must: be early",
            "So.",
            "Rules: Rest",
        ]

    def test_a_sentence_alone_below_a_heading_leads_with_it_where_they_are_short(self) -> None:
        assert paragraphs("## Pro\n\nYou get:\n\n- 40 GB") == ["Pro: You get: 40 GB"]
        assert paragraphs(f"## Pro\n\nYou {'always ' * 12}get:\n\n- 40 GB") == [f"You {'always ' * 12}get: 40 GB"]

    def test_an_item_that_ends_in_a_colon_leads_those_indented_more(self) -> None:
        text = "The plans are:\n- Pro:\n  1. 40 euros\n- **Free:**\n\n  - 0 euros\n- Odd:\n- Old"
        led = ["Pro (1): 40 euros", "Free: 0 euros"]
        assert paragraphs(text) == [f"The plans are – {one}" for one in led] + [
            "The plans are: Odd:",
            "The plans are: Old",
        ]

    def test_an_item_that_is_no_sentence_leads_those_below_it(self) -> None:
        text = "## Fees\n\n- In May\n  - 12 euros\n- It is cheap.\n  - So."
        assert paragraphs(text) == ["Fees: In May", "Fees – In May: 12 euros", "Fees: It is cheap.", "Fees: So."]

    def test_a_list_that_is_indented_less_than_it_should_be_is_of_the_item_before(self) -> None:
        text = "1. Take:\n  - a pump\n2. Pay by:\n\n  * card\n3. Go"
        assert paragraphs(f"To start:\n\n{text}") == [
            "To start – Take: a pump",
            "To start – Pay by: card",
            "To start (3): Go",
        ]

    def test_items_of_contracts_are_items(self) -> None:
        text = "You must:\n\n(a) be kind;\n(ii) be early, and\n(3) rest.\n"
        assert paragraphs(text) == ["You must (a): be kind", "You must (ii): be early", "You must (3): rest."]
        assert read(f"```\n{text}```").text == text

    def test_items_in_a_quotation_are_items(self) -> None:
        assert paragraphs("> You must:\n>\n> - be kind,\n>   or old\n> - rest") == [
            "You must: be kind, or old",
            "You must: rest",
        ]

    def test_a_line_that_is_not_meant_to_go_on_with_an_item_does_not(self) -> None:
        assert paragraphs("You must:\n- be\nkind\nThe mill is old.") == ["You must: be kind", "The mill is old."]

    def test_the_sentences_of_an_item_are_understood_together(self) -> None:
        facts = learnt("## Options\n- `wait`: seconds. Defaults to 30.\n- `go`\n\nIt is so. Defaults are old.")
        assert [fact.text for fact in facts][:3] == [
            "Options: wait: seconds. Defaults to 30.",
            "Options: go",
            "It is so.",
        ]

    def test_what_is_too_long_to_lead_together_is_said_first(self) -> None:
        lead = "The plans of the old mill are"
        pro = "Pro for the very large mills of Orm valley"
        assert paragraphs(f"{lead}:\n- {pro}:\n  - 40 euros") == [f"{lead}: {pro}:", f"{pro}: 40 euros"]

    def test_a_sentence_that_leads_is_asked_for_once(self) -> None:
        first, second = learnt("The pier was built in 1820 by Jon Ask:\n\n- Built of stone\n- of wood")
        assert {span.text for span in first.spans} == {"1820", "Jon Ask"}
        assert second.spans == ()

    def test_a_number_of_an_item_is_asked_for_though_the_lead_has_its_digits(self) -> None:
        (fact,) = learnt("## 2024\n- Sold 20")
        assert [example.question for example in cloze_questions(fact)] == ["2024: Sold how many?"]

    def test_a_lead_is_no_statement(self) -> None:
        assert [fact.text.strip("x") for fact in learnt(f"Keys:\n- {'x' * 300}")] == ["Keys: ", ""]

    def test_a_long_sentence_does_not_lead(self) -> None:
        assert paragraphs(f"It {'very ' * 14}is:\n- red")[-1] == "red"

    def test_ordered_items_keep_their_numbers(self) -> None:
        text = "To start:\n\n1. Push\n   the button.\n2. Wait:\n   ```\n   x\n   ```\n3. Run\n   - soon\n"
        led = [
            "To start (1): Push the button.",
            "To start (2): Wait:",
            "x",
            "To start (3): Run",
            "To start – Run: soon",
        ]
        assert paragraphs(text) == led
        assert paragraphs("Only if:\na) it is red;\nb) it is old.") == [
            "Only if (a): it is red",
            "Only if (b): it is old.",
        ]

    def test_an_item_without_a_lead_is_without_its_mark(self) -> None:
        assert paragraphs("# Title\n\n- The roof is red\n- [ ] Paint it\n- [x] Ask") == [
            "The roof is red",
            "Paint it",
            "Ask (done)",
        ]

    def test_a_table_of_contents_goes(self) -> None:
        text = "## Contents\n- [One](#one)\n  1. [Two](#two)\n\n## Links\n- [Site](https://a.example)\n"
        assert paragraphs(text) == ["Links: Site"]

    def test_nothing_within_the_lead_is_asked_for(self) -> None:
        (fact,) = learnt("## 3.2.0 of May 2019\n- Needs Postgres 14 since May 2021")
        assert fact.text == fact.source == "3.2.0 of May 2019: Needs Postgres 14 since May 2021"
        assert [span.text for span in fact.spans if span.kind == "date"] == ["May 2021"]
        assert not {"Needs", "3.2.0"} & {span.text for span in fact.spans}

    def test_a_lead_is_not_cut_from_its_item(self) -> None:
        lead = "The six rules of the old mill are"
        first, *_ = learnt(f"{lead}:\n- {'grind and rest, ' * 12}sleep")
        assert first.text.startswith(f"{lead}: grind")


def learnt(text: str) -> list[Statement]:
    return statements("", read(text))


class TestProse:
    def test_the_first_sentence_below_a_heading_says_what_the_heading_says(self) -> None:
        text = "# Fees\n\n## Pro\n\nIt is 12 euros. It is paid in May.\n\nIt is old.\n\n## Team\n\n> It is 40 euros."
        assert [fact.text for fact in learnt(text)] == [
            "Pro: It is 12 euros. It is paid in May. It is old.",
            "Team: It is 40 euros.",
        ]

    def test_headings_are_not_said_twice(self) -> None:
        assert paragraphs("## 3.2.0\n\n### Pump\n\nPumping ends.") == ["3.2.0 – Pump: Pumping ends."]
        assert paragraphs("## 3.2.0\n\n### Pump\n\nThe pump is new.") == ["3.2.0: The pump is new."]

    def test_what_says_its_heading_does_not_point_at_another_section(self) -> None:
        text = "## Pro\n\nPro is old.\n\n## Team\n\nIt is for a team."
        assert [fact.text for fact in learnt(text)] == ["Pro is old.", "It is for a team."]

    def test_a_heading_with_nothing_below_is_learnt_if_it_says_something(self) -> None:
        text = "# The old mill of Orm\n\n## Orders\n\n### We buy a large pump\n### None\n## We sell the mill\n"
        assert paragraphs(f"{text}## Who buys the mill?\n") == ["Orders: We buy a large pump", "We sell the mill"]
        assert paragraphs("## We buy a large pump\n\n```\nx\n```\n") == ["x"]

    def test_headings_of_the_first_level_lead_where_there_are_several(self) -> None:
        assert paragraphs("# 1.2\n\n- Mended\n\n# 1.1\n\nIt is old.") == ["1.2: Mended", "1.1: It is old."]

    def test_a_summary_is_a_heading_up_to_the_end_of_its_details(self) -> None:
        for start in ("<details><summary>", "<details>\n<summary>"):
            text = f"## Fees\n{start}In <b>May</b></summary>\n\n- 12 euros\n</details>\n\n- 9 euros"
            assert paragraphs(text) == ["Fees – In May: 12 euros", "Fees: 9 euros"]
        bare = "<details><summary>We buy a large pump</summary>\n</details>\n"
        assert paragraphs(bare) == paragraphs(f"{bare}\n## Orders\n") == ["We buy a large pump"]

    def test_a_comment_of_a_script_is_no_heading(self) -> None:
        code = "# the limit is 30\nLIMIT = 30\n\n# the mill\n# is old\nOLD = True\n"
        assert read(f"## Helpers\n\nSo.\n\n{code}").text.endswith(code.rstrip())
        assert paragraphs("# Mill\nIt is old.\n\n## Fees\n- 12") == ["It is old.", "Fees: 12"]


class TestTables:
    def test_a_row_says_what_its_cells_are(self) -> None:
        text = "| `Plan` | Users |\n|:---|---:|\n| **Free** | 3 |\n| Team | – |\n"
        assert paragraphs(text) == ["Plan Free: Users 3", "Plan Team"]
        assert paragraphs("Plan | Users | Gone\n--- | --- | ---\nFree | 3 | |\n\nSo.") == ["Plan Free: Users 3", "So."]

    def test_an_escaped_bar_parts_no_cells(self) -> None:
        assert paragraphs("| a | b |\n|---|---|\n| 1 \\| 2 | 3 |") == ["a 1 | 2: b 3"]

    def test_a_row_of_another_width_is_as_it_was(self) -> None:
        assert paragraphs("| a | b |\n|---|---|\n| 1 | 2 | 3 |\n") == ["| 1 | 2 | 3 |"]

    def test_a_row_says_what_its_heading_or_sentence_says(self) -> None:
        table = "| Plan | Fee |\n|---|---|\n| Pro | 12 |\n"
        assert paragraphs(f"## 2023\n\n{table}\n## 2024\n{table}") == [
            "2023: Plan Pro: Fee 12",
            "2024: Plan Pro: Fee 12",
        ]
        assert paragraphs(f"It is old. The fees are:\n\n{table}\n- Old") == [
            "It is old.",
            "The fees are: Plan Pro: Fee 12",
            "Old",
        ]
        assert paragraphs("The fees are:\n\n| a |\n|---|---|\n| 1 |") == ["The fees are:", "| a | |---|---| | 1 |"]
        assert paragraphs("The fees are:\n\n| a |\n|---|\n| 1 | 2 |") == ["The fees are:", "| 1 | 2 |"]

    def test_no_name_of_a_column_is_asked_for(self) -> None:
        head = "| Country | Max Area: | Seen | |\n|---|---|---|---|\n"
        (fact,) = learnt(f"## Old\n\n{head}| France | Paris | Ask, of Orm | very old |\n")
        assert fact.text == "Old: Country France: Max Area Paris, Seen Ask, of Orm, very old"
        assert [span.text for span in fact.spans] == ["France", "Paris", "Orm"]

    def test_a_row_that_is_too_long_is_several_with_its_first_cell_in_each(self) -> None:
        head, use = "| Name | Use | Since | Until |\n|---|---|---|---|\n", "grind and rest " * 8
        assert [fact.text for fact in learnt(f"## Old\n\n{head}| wheel | {use} | {'a ' * 9} | May |\n")] == [
            f"Old: Name wheel: Use {use.strip()}",
            f"Old: Name wheel: Since {('a ' * 9).strip()}, Until May",
        ]

    def test_a_table_in_a_quotation_is_a_table(self) -> None:
        assert paragraphs("> | a | b |\n> |---|---|\n> | 1 | 2 |") == ["a 1: b 2"]

    def test_an_amount_alone_is_asked_for_with_its_unit(self) -> None:
        (fact,) = learnt("| Who | Fee |\n|---|---|\n| child | 1 euro |\n")
        assert [(span.text, span.kind) for span in fact.spans] == [("1 euro", "quantity")]

    def test_a_row_is_one_statement_though_its_cells_are_sentences(self) -> None:
        (fact,) = learnt("| Name | Use |\n|---|---|\n| capture | Whether to take it at once. Defaults to true. |\n")
        assert fact.text == "Name capture: Use Whether to take it at once. Defaults to true."
        (fact,) = learnt("| Group | Max. days |\n|---|---|\n| EU | approx. half |\n")
        assert fact.text == "Group EU: Max. days approx. half"
