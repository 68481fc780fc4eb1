"""What is easily lost, or given a wrong lead, where blocks stand within others."""

import pytest

from trainer_worker.marks import read
from trainer_worker.statements import statements


@pytest.mark.parametrize(
    ("text", "learnt"),
    [
        (":\n- one item\n", ["one item"]),
        ("**:**\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", ["a 1: b 2"]),
        ("You must:\n    - be kind\n    - rest well\n", ["You must: be kind", "You must: rest well"]),
        ("\t- a tab item\n\t- b tab item\n", ["a tab item", "b tab item"]),
        ("- Safe\n        - bounds\n        - types\n- Slow\n", ["Safe", "Safe: bounds", "Safe: types", "Slow"]),
        ("## A\n\n- foo:\n        (a) bar\n        (b) baz\n", ["A – foo (a): bar", "A – foo (b): baz"]),
        ("    the first is red\n\n    ## the other\n    is it\n", ["the first is red", "## the other", "is it"]),
        ("- one item\r```\rcode\r```\r\nSo it is.", ["one item", "code", "So it is."]),
        (f"{'>' * 25} The disk is full\nThe end.\n", ["The disk is full", "The end."]),
        (f"{'>' * 250} The disk is full\nThe end.\n", ["The disk is full", "The end."]),
    ],
)
def test_however_far_it_is_indented_and_however_deep(text: str, learnt: list[str]) -> None:
    assert [fact.text for fact in statements("", read(text))] == learnt


@pytest.mark.parametrize(
    ("text", "learnt"),
    [
        ("Install it so:\n\n1. ```\n   npm i\n   ```\n\nIt is red.\n", ["Install it so:", "npm i", "It is red."]),
        ("Run this:\n\n- > Quoted text.\n\nIt is old.\n", ["Run this:", "- > Quoted text.", "It is old."]),
        ("- Run it now:\n  - ```\n    x code\n    ```\n", ["Run it now:", "x code"]),
        ("- The X:\nThe Y are:\n\n  - Z is\n", ["The X:", "The Y are: Z is"]),
        ("It has these:\n\n- [One](#one)\n\nIt is red.", ["It has these:", "It is red."]),
        ("It has these:\n\n| a |\n|---|\n| - |\n\nIt is red.", ["It has these:", "It is red."]),
    ],
)
def test_what_would_lead_is_said_where_nothing_comes_that_says_it(text: str, learnt: list[str]) -> None:
    assert [fact.text for fact in statements("", read(text))] == learnt


@pytest.mark.parametrize(
    ("text", "learnt"),
    [
        (
            "1. You shall:\n(a) pay;\n(b) go.\n2. So not.\n",
            ["1. You shall (a): pay", "1. You shall (b): go.", "2. So not."],
        ),
        ("> ## Note here\n> It is red.\n\nSo it is.\n\n- one\n", ["Note here: It is red.", "So it is.", "one"]),
        ("## Fees\n\n- # Inner\n- one item\n\nText.\n\n- two\n", ["Fees: one item", "Text.", "Fees: two"]),
        ("# A\n\n[![b](c)](d) [![e](f)](g)\n\nIt is red.\n\n# B\n\nIt is old.\n", ["A: It is red.", "B: It is old."]),
        (
            "## Fees\n\nThe terms of the paragraph\n(b) apply to all.\n",
            ["Fees: The terms of the paragraph", "(b) apply to all."],
        ),
        ("> You must:\n>\n> - be kind\n\n- other", ["You must: be kind", "other"]),
        ("You must:\n\n- be kind\n\n> - other", ["You must: be kind", "other"]),
        ("## We buy a large pump\n\n### None\n\n## Next\n\nIt is red.", ["We buy a large pump", "Next: It is red."]),
        ("## Fees\n\n### ![badge](b)\n\n- item", ["Fees: item"]),
        ("## Setup\n\n- [One](#one)\n\nIt is hot.", ["Setup: It is hot."]),
        ("It has:\n\n-\n- <img src=i.svg> Fast builds\n- Slow", ["It has: Fast builds", "It has: Slow"]),
        ("> 1. Take:\n>   - a pump\n>     And old", ["Take: a pump And old"]),
        ("You must:\n    - be kind\n    - rest\n---\n", ["You must: be kind", "You must: rest"]),
        ("| Plan |\n|---|\n| Pro |\nText after it is here.\n", ["Plan Pro", "Text after it is here."]),
        (
            "The plans are:\n\n- Pro plan:\n\n  | a | b |\n  |---|---|\n  | 1 | 2 |\n\n- Free\n",
            ["The plans are – Pro plan: a 1: b 2", "The plans are: Free"],
        ),
    ],
)
def test_a_lead_is_of_what_stands_below_it_and_of_nothing_else(text: str, learnt: list[str]) -> None:
    assert [fact.text for fact in statements("", read(text))] == learnt


@pytest.mark.parametrize(
    ("text", "learnt"),
    [
        ("<details>\n<summary>More</summary>\n- one\n- two\n</details>\n", ["More: one", "More: two"]),
        (
            "<details><summary>What is it?</summary>It is X.</details>\n\n- other\n",
            ["What is it: It is X.", "other"],
        ),
        ("<details>\n\nYou must:\n\n- be kind\n</details>\n\n- other\n", ["You must: be kind", "other"]),
        ("<div align=center>\n# Title\n## Sub\n- item\n</div>", ["Sub: item"]),
        ("<!--\n<img src=x>\nHidden text here\n**Or here?**\n-->\n\nIt is red.\n", ["It is red."]),
        ("<!-- not closed\n\n## Head\n\n- two\n", ["-- not closed", "Head: two"]),
        ("## Setup\n\n**Warning**\n\nIt is hot.\n", ["Setup: Warning", "It is hot."]),
        (
            "1. ```bash\n   npm i\n   ```\n\n```\ntwo\n```\n\n## Head *one*\n\n- item *two*\n",
            ["npm i", "two", "Head one: item two"],
        ),
        (
            "> ```\n> code\n\nThe text\n\n```\nthe x\n```\n\n## Head\n\n- y *z*\n",
            ["code", "The text", "the x", "Head: y z"],
        ),
    ],
)
def test_html_and_fences_begin_and_end_where_they_do(text: str, learnt: list[str]) -> None:
    assert [fact.text for fact in statements("", read(text))] == learnt
