"""Questions that headings ask, with what stands below them."""

import pytest

from trainer_worker.marks import read
from trainer_worker.told import Told, told


@pytest.mark.parametrize("mark", ["### How is it built?", "**How is it built?**\n", "## 3. How is it *built*? ##\n"])
def test_the_paragraph_below_answers_it_and_stays(mark: str) -> None:
    reading = read(f"{mark}\nOf **brick**,\nby hand.\n\nIt is old.\n")
    assert reading.pairs == (Told("How is it built?", "Of brick, by hand.", stays=True),)
    assert "by hand" in reading.text


def test_a_question_is_learnt_in_any_language() -> None:
    text = "### 我可以退款吗？\n\n可以。\n\n**Wie hoch ist sie?**\nZwölf Meter.\n**Wie alt ist sie?**\nAlt.\n"
    assert read(text).pairs == (
        Told("我可以退款吗？", "可以。", stays=True),
        Told("Wie hoch ist sie?", "Zwölf Meter.", stays=True),
        Told("Wie alt ist sie?", "Alt.", stays=True),
    )


def test_an_answer_that_ends_in_a_colon_takes_the_list_after_it() -> None:
    text = "## What do you take?\n\nWe take:\n\n- `cash`\n- gold\n  coins\n  - old\n\nSo.\n"
    assert read(text).pairs == (Told("What do you take?", "We take: cash; gold coins; old", stays=True),)
    assert not read("## What is it?\n\nThis:\n\n" + "- very old and red\n" * 400).pairs


@pytest.mark.parametrize(
    "text",
    [
        "## Why?\n\nFor fun.\n",
        "## What is it?\n\n## Red\n",
        "## What is it?\n\nThis:\n\n| a |\n|---|\n",
        "## What is it?\n\nThis:\n\nSo.\n\n- red",
        "## What is it?\n\n- red\n",
        "## What is it?\n\n```\nx\n```\nRed.\n",
        "## What is it?\n\n![x](y)\n",
        "a | b | what is it?\n--- | --- | ---\n",
        "What is it?\n\nRed.\n",
        "**What is it?** Red.\n\nYes.\n",
        "```\n## What is it?\nRed.\n```\n",
        "## What is it?\n\nA title\n---\n",
        "## What is it?",
        f"## What is it?\n\n{'word ' * 2000}\n",
    ],
)
def test_a_heading_without_an_answer_is_no_pair(text: str) -> None:
    assert not read(text).pairs


@pytest.mark.parametrize("start", ["<details><summary>", "<details open>\n<summary>"])
def test_a_summary_may_ask(start: str) -> None:
    text = f"{start}<b>How do I pay?</b></summary>\n\nBy `card`.\n</details>\n"
    assert read(text).pairs == (Told("How do I pay?", "By card.", stays=True),)
    assert not read(text.replace("?", "")).pairs


def test_a_marked_pair_below_a_heading_is_no_answer_of_it() -> None:
    pairs, rest = told("## What is asked here?\n\nQ: Is it red?\nA: Yes.\n\nIt is all.\n")
    assert pairs == [Told("Is it red?", "Yes.")]
    assert read(rest).pairs == (Told("What is asked here?", "It is all.", stays=True),)
