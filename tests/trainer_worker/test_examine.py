from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loramem.errors import SettingsError
from tests.trainer_worker.test_train import ignore
from tests.trainer_worker.tiny import LESSONS, save_tiny_model
from trainer_worker import packing
from trainer_worker.anchors import with_own_answers
from trainer_worker.examine import MAX_NEW_TOKENS, answer_closed_book, examine, overlap, recall
from trainer_worker.examples import MAX_QUESTIONS, Example
from trainer_worker.loop import Hyperparameters
from trainer_worker.train import Trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Trainer(
        str(folder), seed=0, hyperparameters=Hyperparameters(learning_rate=0.0, epochs=1, min_steps=1, anchors=0.0)
    )


def test_an_answer_holds_the_span_asked_for_in_any_case() -> None:
    asked = [Example("Who?", "Jon Ask built it.", "written", "Jon Ask")]
    assert recall(asked, ["It was JON ASK, I think"]) == 1.0
    assert recall(asked, ["Jon"]) == 0.0


def test_without_a_span_the_whole_answer_is_wanted() -> None:
    asked = [Example("What?", "The roof is copper.", "user")]
    assert recall(asked, ["Well: the roof is copper, they say"]) == 1.0
    assert recall(asked, ["copper"]) == 0.0


@pytest.mark.parametrize(
    ("wanted", "answer", "holds"),
    [
        ("No.", "I do not know", False),
        ("No.", "No, it is closed.", True),
        ("44", "It has 444 pipes", False),
        ("44", "It has 44 pipes", True),
        ("pipe", "It has pipes", True),
        ("pipes", "It has a pipe", False),
        ("pipe", "It is a pipeline", False),
        ("铜", "屋顶是铜的", True),
    ],
)
def test_an_answer_holds_whole_words_or_their_plural(wanted: str, answer: str, holds: bool) -> None:
    assert recall([Example("What?", wanted, "user")], [answer]) == holds


def test_an_adapter_that_learnt_nothing_is_weak(trainer: Trainer) -> None:
    adapter = trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore)
    exam = examine(trainer, adapter, LESSONS[:3])
    assert (exam.recall, exam.base_recall, exam.weak) == (0.0, 0.0, True)


def test_no_questions_no_verdict(trainer: Trainer) -> None:
    adapter = trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore)
    exam = examine(trainer, adapter, [])
    assert (exam.questions, exam.weak) == (0, False)


def test_a_long_exam_is_cut(trainer: Trainer) -> None:
    adapter = trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore)
    assert examine(trainer, adapter, LESSONS[:1] * (MAX_QUESTIONS + 5)).questions == MAX_QUESTIONS


def test_an_answer_may_be_as_long_as_the_one_expected(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def answers(conversations: list[Any], *, max_new_tokens: int) -> list[str]:
        asked.append(max_new_tokens)
        return [""] * len(conversations)

    monkeypatch.setattr(trainer, "answers", answers)
    adapter = trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore)
    long = replace(LESSONS[0], answer=" ".join(["larch"] * 3 * MAX_NEW_TOKENS))
    examine(trainer, adapter, LESSONS[:1])
    examine(trainer, adapter, [LESSONS[0], long])
    assert asked == [MAX_NEW_TOKENS] * 2 + [len(trainer.row(long).answer)] * 2
    assert asked[-1] > 2 * MAX_NEW_TOKENS


def test_a_base_without_a_token_to_pad_with_answers_as_with_one(trainer: Trainer, tmp_path: Path) -> None:
    """As Llama 3, whose tokenizer has none."""
    bare = Trainer(str(save_tiny_model(tmp_path, pad_token=None)), seed=0, hyperparameters=trainer.hyperparameters)
    questions = [example.question for example in LESSONS]
    assert answer_closed_book(bare, questions) == answer_closed_book(trainer, questions)
    assert examine(bare, bare.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore), LESSONS[:3]).weak


def test_a_base_that_reads_one_row_into_the_next_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As recurrent layers do: here by a mask that lets every token see all before it."""
    folder = str(save_tiny_model(tmp_path))
    stock = packing.to_batch

    def leaking(*given: Any) -> Any:
        batch = stock(*given)
        lane = torch.full_like(batch.attention, torch.finfo(batch.attention.dtype).min).triu(1)
        return replace(batch, attention=lane)

    monkeypatch.setattr("trainer_worker.base.to_batch", leaking)
    monkeypatch.setattr("trainer_worker.base.APART", 1e-3)  # a model of chance differs by little
    with pytest.raises(SettingsError, match="llama: its layers read one training text into the next"):
        Trainer(folder, seed=0)
    monkeypatch.setattr("trainer_worker.base.to_batch", stock)
    Trainer(folder, seed=0)


def test_overlap_is_a_share_of_words() -> None:
    asked = [Example("What?", "The roof is copper.", "user"), Example("Who?", "Jon Ask.", "user")]
    assert overlap(asked, ["The roof is copper.", "nobody"]) == 0.5
    assert overlap([], []) == 0.0


def test_two_questions_are_no_evidence(trainer: Trainer) -> None:
    adapter = trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore)
    assert not examine(trainer, adapter, LESSONS[:2]).weak


def test_harm_is_what_unrelated_answers_lose(trainer: Trainer) -> None:
    [unrelated] = with_own_answers(trainer, [Example("what is brick ?", "", "anchor")])
    nothing = trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore)
    assert examine(trainer, nothing, [], unrelated=unrelated).harm == pytest.approx(0, abs=1e-3)
    trainer.hyperparameters = replace(trainer.hyperparameters, learning_rate=3e-2, min_steps=30)
    much = trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=ignore)
    assert examine(trainer, much, [], unrelated=unrelated).harm > 0.1
