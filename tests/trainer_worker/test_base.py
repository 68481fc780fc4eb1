"""The base model with attention computed in two ways, by the length of what it reads."""

from pathlib import Path

import pytest

from tests.trainer_worker.tiny import LESSONS
from trainer_worker import base as base_module
from trainer_worker.base import EAGER_TOKENS, PLACES, Base
from trainer_worker.examples import Example

LONG = Example(" ".join(["larch"] * (EAGER_TOKENS + 1)), "jon ask built the mill .", "user")


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return Base(str(folder))


def way(base: Base) -> str:
    return str(base.model.config._attn_implementation)


def test_long_rows_are_read_by_the_fused_kernel_and_surprise_the_same(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [base.row(LESSONS[0]), base.row(LONG)]
    fused, loss = base.surprises(rows), base.mean_loss([LONG])
    assert way(base) == "sdpa"
    monkeypatch.setattr(base_module, "EAGER_TOKENS", 8 * EAGER_TOKENS)
    plain = base.surprises(rows)
    assert way(base) == "eager"
    for row in rows:
        assert fused[row] == pytest.approx(plain[row], abs=1e-4)
    assert loss == pytest.approx(base.mean_loss([LONG]), abs=1e-4)


def test_short_rows_after_long_ones_are_read_by_plain_products_again(base: Base) -> None:
    before = base.mean_loss(LESSONS[:1])
    base.mean_loss([LONG])
    assert base.mean_loss(LESSONS[:1]) == before
    assert way(base) == "eager"


def test_a_row_that_spells_the_end_of_a_turn_ends_once(base: Base) -> None:
    end = base.tokenizer.convert_ids_to_tokens(base.end)
    row = base.row(Example(f"who {end} ?", f"the mill {end} .", "user"))
    assert row.answer.count(base.end) == 1
    assert row.prompt.count(base.end) == base.row(Example("who ?", "the mill .", "user")).prompt.count(base.end)


def test_the_head_reads_one_of_a_few_numbers_of_rows(base: Base) -> None:
    rows = [base.row(example) for example in LESSONS]
    read: list[int] = []
    hook = base.model.lm_head.register_forward_hook(lambda head, inputs, logits: read.append(inputs[0].shape[1]))
    found = base.surprises(rows)
    hook.remove()
    assert [places % PLACES for places in read] == [0]
    assert [len(found[row]) for row in rows] == [len(row.answer) for row in rows]


def test_prompts_are_padded_to_one_of_a_few_lengths(base: Base) -> None:
    read: list[int] = []
    embed = base.model.get_input_embeddings()
    hook = embed.register_forward_hook(lambda layer, inputs, states: read.append(inputs[0].shape[1]))
    base.answers([base.conversation(lesson) for lesson in LESSONS], max_new_tokens=1)
    hook.remove()
    assert [length % PLACES for length in read] == [0]
