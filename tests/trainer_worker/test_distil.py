"""Labels of a teacher, and prompts held to the base."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loramem.errors import JobCancelled
from tests.trainer_worker.test_train import ignore
from tests.trainer_worker.tiny import LESSONS, save_tiny_model
from trainer_worker import distil
from trainer_worker import loop as loop_module
from trainer_worker import train as train_module
from trainer_worker.anchors import MAX_NEW_TOKENS, anchors, drawn, exam_anchors
from trainer_worker.base import Base
from trainer_worker.distil import labels_of, taught
from trainer_worker.loop import Hyperparameters
from trainer_worker.packing import Labels, Row
from trainer_worker.train import Lesson, Trainer

QUESTIONS = 24
PASSAGES = 10
SOURCES = [("jon ask built the mill . the wheel is larch .",), ("the roof is made of copper .",)]
TOLD = [replace(LESSONS[place], source=SOURCES[place % 2]) for place in range(3)]


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


def test_anchors_that_were_kept_are_those_that_would_be_found(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [*anchors(base), exam_anchors(base)]
    assert told([*anchors(base, tmp_path), exam_anchors(base, tmp_path)]) == told(found)
    monkeypatch.setattr(base, "answers", None)
    assert told([*anchors(base, tmp_path), exam_anchors(base, tmp_path)]) == told(found)


def test_what_one_worker_has_asked_the_base_no_other_asks(folder: Path, tmp_path: Path) -> None:
    first, second = (Trainer(str(folder), seed=0, cache=tmp_path) for _ in range(2))
    found = [*first._anchors, first.unrelated]
    second.answers = lambda *given, **options: pytest.fail("it is asked again")  # type: ignore[method-assign]
    assert told([*second._anchors, second.unrelated]) == told(found)


def test_kept_anchors_that_cannot_be_read_are_asked_for(
    base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = anchors(base, tmp_path)
    for file in tmp_path.glob("*/*.json"):
        file.write_bytes(b"[[")
    assert told(anchors(base, tmp_path)) == told(found)
    assert "cannot be used" in caplog.text


def test_anchors_of_a_model_that_may_answer_otherwise_are_asked_for(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors(base, tmp_path)
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", 5)
    anchors(base, tmp_path)
    assert len(set(tmp_path.iterdir()) - before) == len(before) > 0


def told(groups: Sequence[Sequence[Row]]) -> list[list[tuple[Row, tuple[Labels, ...]]]]:
    """With the labels, which are left out when rows are compared."""
    return [[(row, row.labels) for row in group] for group in groups]


def test_some_anchors_are_about_as_many_as_asked_and_others_next_time(base: Base) -> None:
    groups = [[base.row(LESSONS[0])] * QUESTIONS, *([base.row(LESSONS[1])] * 3 for _ in range(PASSAGES))]
    assert drawn(groups, 0, random.Random(0)) == []
    for count in (1, 7, 20, 40):
        assert count <= sum(map(len, drawn(groups, count, random.Random(0)))) <= count + 3


class TestTeaching:
    """A training whose examples come with what a teacher reads first."""

    @pytest.fixture
    def trainer(self, folder: Path) -> Trainer:
        return Trainer(
            str(folder), seed=0, hyperparameters=Hyperparameters(epochs=0, min_steps=6, distil=0.5, anchors=0.0)
        )

    def test_the_teacher_reads_each_source_apart(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[list[Row]] = []

        def noted(base: Base, rows: Sequence[Row], shown: Sequence[Row], *given: Any) -> list[Row]:
            read.append(list(shown))
            return taught(base, rows, shown, *given)

        monkeypatch.setattr(train_module, "taught", noted)
        trainer.train(TOLD, [], rank=8, max_seconds=3600, on_step=ignore)
        assert read == [
            [trainer.row(replace(one, context=source)) for one in TOLD if one.source == source] for source in SOURCES
        ]

    def test_its_reading_is_no_training_time(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[int] = []
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * len(read))
        monkeypatch.setattr(train_module, "time", clock)
        monkeypatch.setattr(loop_module, "time", clock)

        def slow(base: Base, rows: Sequence[Row], *given: Any) -> list[Row]:
            read.append(len(rows))
            return taught(base, rows, *given)

        monkeypatch.setattr(train_module, "taught", slow)
        facts = trainer.train(TOLD, [], rank=8, max_seconds=500, on_step=ignore).facts
        assert (read, facts["steps"]) == ([2, 1], 6)
        assert float(facts["seconds"]) < 500

    def test_its_reading_is_told_row_by_row_over_all_lessons(self, trainer: Trainer) -> None:
        told: list[tuple[int, int]] = []
        lessons = [Lesson([*TOLD, *LESSONS[3:]]), Lesson(TOLD[:1]), Lesson(LESSONS[:1])]
        trainer.train_all(
            lessons, rank=8, max_seconds=3600, on_step=ignore, on_taught=lambda done, total: told.append((done, total))
        )
        assert told == sorted(told)
        assert {total for _, total in told} == {4}
        assert len(told) > 1
        assert told[-1] == (4, 4)

    def test_a_job_may_end_while_it_reads(self, trainer: Trainer) -> None:
        def cancel(done: int, total: int) -> None:
            raise JobCancelled("asked for")

        with pytest.raises(JobCancelled):
            trainer.train_all([Lesson(TOLD)], rank=8, max_seconds=3600, on_step=ignore, on_taught=cancel)
