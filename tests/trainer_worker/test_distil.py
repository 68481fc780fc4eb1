"""Labels of a teacher, and prompts held to the base."""

import random
from dataclasses import replace

import pytest
import torch

from tests.trainer_worker.tiny import LESSONS, save_tiny_model
from trainer_worker import distil
from trainer_worker.anchors import MAX_NEW_TOKENS, anchors, some
from trainer_worker.base import Base
from trainer_worker.distil import labels_of, taught

QUESTIONS = 24
PASSAGES = 10


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(str(save_tiny_model(tmp_path_factory.mktemp("tiny"))))


def test_labels_are_the_bases_own_probabilities(base: Base) -> None:
    rows = [base.row(example) for example in LESSONS]
    for row, labels in labels_of(base, rows).items():
        logits = base.model(torch.tensor([[*row.prompt, *row.answer[:-1]]])).logits[0, -len(row.answer) :]
        expected = logits.float().softmax(dim=-1).topk(distil.TOP)
        assert [[token for token, _ in place] for place in labels] == expected.indices.tolist()
        assert torch.allclose(torch.tensor([[p for _, p in place] for place in labels]), expected.values, atol=1e-5)


def test_the_answer_keeps_what_the_teacher_does_not_get(base: Base) -> None:
    examples = LESSONS[:2]
    rows = [base.row(example) for example in examples]
    shown = [base.row(replace(example, context=("jon ask built the mill .",))) for example in examples]
    from_text, own = labels_of(base, shown), labels_of(base, rows)
    for row, other, mixed in zip(rows, shown, taught(base, rows, shown, 0.25), strict=True):
        assert (mixed.prompt, mixed.answer) == (row.prompt, row.answer)
        assert from_text[other] != own[row]
        for token, labels, teacher in zip(row.answer, mixed.labels, from_text[other], strict=True):
            assert labels[0] == (token, 0.75)
            assert [of for of, _ in labels[1:]] == [of for of, _ in teacher]
            assert [weight for _, weight in labels[1:]] == pytest.approx([0.25 * weight for _, weight in teacher])


def test_anchors_are_what_the_base_says_and_with_what_certainty(base: Base) -> None:
    closed, *open_book = anchors(base)
    assert len(closed) <= QUESTIONS
    assert len(open_book) <= PASSAGES
    rows = [*closed, *(row for group in open_book for row in group)]
    assert all(len(row.labels) == len(row.answer) <= MAX_NEW_TOKENS + 1 for row in rows)
    said = [place[0][0] == token for row in rows for place, token in zip(row.labels, row.answer[:-1], strict=False)]
    assert sum(said) > 0.9 * len(said)  # greedy: the most probable each time, but for what no text can say


def test_some_anchors_are_about_as_many_as_asked_and_others_next_time(base: Base) -> None:
    groups = [[base.row(LESSONS[0])] * QUESTIONS, *([base.row(LESSONS[1])] * 3 for _ in range(PASSAGES))]
    assert some(groups, 0, random.Random(0)) == []
    for count in (1, 7, 20, 40):
        assert count <= sum(map(len, some(groups, count, random.Random(0)))) <= count + 3
