import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from loramem.errors import JobCancelled, TrainingFailed
from loramem.records import Placement
from tests.trainer_worker.tiny import LESSONS
from trainer_worker import loop as loop_module
from trainer_worker import lora
from trainer_worker import train as train_module
from trainer_worker.adapter import TrainedAdapter, depth_of
from trainer_worker.anchors import anchors
from trainer_worker.examine import answer_closed_book, examine
from trainer_worker.examples import Example
from trainer_worker.loop import Hyperparameters, Loop, OnStep
from trainer_worker.packing import Row
from trainer_worker.train import Lesson, Trainer, learning_rate_of

pytestmark = pytest.mark.usefixtures("short_packs")

QUICK = Hyperparameters(learning_rate=1e-2, epochs=20, min_steps=120, step_tokens=64, frozen_layers=0.0, anchors=0.0)


@pytest.fixture
def trainer(folder: Path) -> Trainer:
    return Trainer(str(folder), seed=0, hyperparameters=QUICK, base_name="tiny")


def ignore(step: int, total: int, loss: float) -> None:
    pass


def train(
    trainer: Trainer, held_out: Sequence[Example] = (), *, max_seconds: float = 3600, on_step: OnStep = ignore
) -> TrainedAdapter:
    return trainer.train(LESSONS, held_out, rank=8, max_seconds=max_seconds, on_step=on_step)


def test_an_adapter_recalls_what_it_was_taught_and_the_base_does_not(trainer: Trainer) -> None:
    adapter = train(trainer)
    exam = examine(trainer, adapter, LESSONS[:3])
    assert (exam.questions, exam.recall, exam.base_recall, exam.weak) == (3, 1.0, 0.0, False)
    assert exam.loss < 0.3


def test_the_base_is_as_before_after_training(trainer: Trainer) -> None:
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    train(trainer)
    after = trainer.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("count", [3, 7])
def test_the_first_training_of_a_process_may_be_of_any_number_side_by_side(folder: Path, count: int) -> None:
    """The base answers anchors then, which must not happen through the adapters in training."""
    fresh = Trainer(
        str(folder), seed=0, hyperparameters=replace(QUICK, anchors=0.5, min_steps=1, epochs=0.1), base_name="tiny"
    )
    lesson = Lesson(LESSONS, (), [Example("What is the colour of snow?", "White.", "user")])
    trained = fresh.train_all([lesson] * count, rank=8, max_seconds=3600, on_step=ignore)
    assert len(trained) == count


def test_stopping_in_mid_training_leaves_the_base_as_before(trainer: Trainer) -> None:
    def cancel(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise JobCancelled("asked for")

    before = set(trainer.model.state_dict())
    answers = answer_closed_book(trainer, ["who built the mill ?"])
    with pytest.raises(JobCancelled):
        train(trainer, on_step=cancel)
    assert set(trainer.model.state_dict()) == before
    assert answer_closed_book(trainer, ["who built the mill ?"]) == answers
    assert train(trainer).facts["loss"] < 0.5  # type: ignore[operator]


def test_the_same_seed_gives_the_same_weights(folder: Path) -> None:
    first, second = (train(Trainer(str(folder), seed=7, hyperparameters=QUICK)) for _ in range(2))
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_adapters_of_a_base_start_from_the_same_a(trainer: Trainer) -> None:
    frozen = Hyperparameters(learning_rate=0.0, epochs=1, min_steps=1, anchors=0.0)
    trainer.hyperparameters = frozen
    one = train(trainer)
    other = trainer.train(LESSONS[:1], [], rank=8, max_seconds=3600, on_step=ignore)
    names = [name for name in one.weights if ".lora_A." in name]
    assert names
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in names)
    assert all(not tensor.any() for name, tensor in one.weights.items() if ".lora_B." in name)


@pytest.mark.parametrize(
    "changes",
    [
        {"frozen_layers": 0.0},
        {"frozen_layers": 0.5},
        {"placement": "early", "frozen_layers": 0.5},
        {"placement": "all"},
        {"placement": "ffn"},
        {"placement": "attention"},
        {"freeze_a": True},
        {"variant": "pissa"},
        {"variant": "pissa", "placement": "early", "frozen_layers": 0.5, "freeze_a": True},
    ],
    ids=str,
)
def test_a_saved_adapter_is_a_peft_folder_that_names_no_path(
    trainer: Trainer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trainer.hyperparameters = replace(QUICK, **changes)
    adapter = train(trainer)
    adapter.save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    rank = 16 if trainer.hyperparameters.variant == "pissa" else 8
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (rank, 2 * rank, "tiny")
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "ties_mask.safetensors",
    }
    base: Any = AutoModelForCausalLM.from_pretrained(trainer.tokenizer.name_or_path)
    loaded: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    names = {name.replace(".default.", ".") for name, _ in loaded.named_parameters() if ".lora_" in name}
    assert names == set(adapter.weights)
    ids = torch.tensor([[5, 6, 7]])
    with trainer.adapted(adapter):
        expected = trainer.model(ids).logits
    roundings = 2 * 2**-8 * float(expected.detach().abs().max())  # of A and of B, to bfloat16 in the file
    assert torch.allclose(loaded(ids).logits, expected, atol=roundings)
    assert not torch.allclose(trainer.model(ids).logits, expected, atol=1.0)


def test_packed_rows_cost_the_same_as_rows_alone(trainer: Trainer) -> None:
    closed = [example for example in LESSONS if not example.context]
    together = trainer.mean_loss(closed)
    alone = [(trainer.mean_loss([example]), len(example.answer.split()) + 1) for example in closed]
    assert together == pytest.approx(sum(loss * n for loss, n in alone) / sum(n for _, n in alone), rel=1e-4)


def test_adapters_trained_side_by_side_each_know_their_own(trainer: Trainer) -> None:
    lessons = [Lesson(LESSONS[:1], LESSONS[:1]), Lesson(LESSONS[1:3], LESSONS[1:3])]
    one, other = trainer.train_all(lessons, rank=8, max_seconds=3600, on_step=ignore)
    assert examine(trainer, one, LESSONS[:1]).recall == 1.0
    assert examine(trainer, other, LESSONS[1:3]).recall == 1.0
    assert examine(trainer, one, LESSONS[1:3]).recall == 0.0
    assert one.facts["beside"] == 1
    assert one.facts["tokens"] != other.facts["tokens"]


def test_an_adapter_may_leave_out_the_lower_layers(folder: Path) -> None:
    upper = Trainer(str(folder), seed=0, hyperparameters=replace(QUICK, frozen_layers=0.5))
    adapter = train(upper)
    assert {depth_of(name) for name in adapter.weights} == {1}
    assert examine(upper, adapter, LESSONS[:3]).recall == 1.0


@pytest.mark.parametrize(
    ("placement", "depths"),
    [("late", [1]), ("early", [0]), ("all", [0, 1]), ("ffn", [0, 1]), ("attention", [0, 1])],
)
def test_every_placement_learns(trainer: Trainer, placement: Placement, depths: list[int]) -> None:
    trainer.hyperparameters = replace(QUICK, placement=placement, frozen_layers=0.5)
    adapter = train(trainer)
    layers = lora.placed(trainer.model, placement, 1)
    assert set(adapter.weights) == {lora.peft_name(name, side) for name in layers for side in ("A", "B")}
    assert adapter.layers == depths
    assert adapter.facts["placement"] == placement
    assert examine(trainer, adapter, LESSONS[:3]).recall == 1.0


def test_b_alone_is_trained_where_a_is_frozen(trainer: Trainer) -> None:
    trainer.hyperparameters = replace(QUICK, learning_rate=0.0, epochs=1, min_steps=1)
    begun = train(trainer)
    trainer.hyperparameters = replace(QUICK, freeze_a=True)
    adapter = train(trainer)
    for name, tensor in adapter.weights.items():
        assert torch.equal(tensor, begun.weights[name]) == (".lora_A." in name)
    assert examine(trainer, adapter, LESSONS[:3]).recall == 1.0
    assert (adapter.facts["freeze_a"], begun.facts["freeze_a"]) == (True, False)


def test_only_what_is_trained_is_optimised(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    begin = Loop.__init__

    def counted(self: Loop, compute: Any, live: Sequence[torch.Tensor], *given: Any, **named: Any) -> None:
        counts.append(sum(parameter.numel() for parameter in live))
        begin(self, compute, live, *given, **named)

    monkeypatch.setattr(Loop, "__init__", counted)
    for changes in ({}, {"freeze_a": True}, {"variant": "pissa"}):
        trainer.hyperparameters = replace(QUICK, min_steps=1, epochs=0, **changes)
        train(trainer)
    sizes = [(layer.in_features, layer.out_features) for _, layer in lora.linear_layers(trainer.model)]
    whole = 8 * sum(map(sum, sizes))
    assert counts == [whole, 8 * sum(out for _, out in sizes), whole]


@pytest.mark.parametrize(
    "changes", [{}, {"freeze_a": True}, {"variant": "pissa"}, {"placement": "early", "frozen_layers": 0.5}], ids=str
)
def test_an_adapter_learns_beside_others_what_it_learns_alone(trainer: Trainer, changes: dict[str, Any]) -> None:
    trainer.hyperparameters = replace(QUICK, epochs=0, min_steps=5, **changes)
    lessons = [Lesson(LESSONS[:1]), Lesson(LESSONS[2:3])]  # of one row each, so that the order is the same
    beside = trainer.train_all(lessons, rank=8, max_seconds=3600, on_step=ignore)
    for lesson, adapter in zip(lessons, beside, strict=True):
        (alone,) = trainer.train_all([lesson], rank=8, max_seconds=3600, on_step=ignore)
        assert alone.facts["loss"] == pytest.approx(adapter.facts["loss"], abs=1e-3)
        assert _apart(alone, adapter) < 0.05  # roundings
    assert _apart(*beside) > 1


def _apart(one: TrainedAdapter, other: TrainedAdapter) -> float:
    """By what they add to the base, relative to the first: A and B of PiSSA are known but for signs."""
    ours, others = _updates(one), _updates(other)
    return float((ours - others).norm() / ours.norm())


def _updates(adapter: TrainedAdapter) -> torch.Tensor:
    names = [name.removesuffix("lora_A.weight") for name in adapter.weights if name.endswith("lora_A.weight")]
    pairs = [(adapter.weights[f"{name}lora_B.weight"], adapter.weights[f"{name}lora_A.weight"]) for name in names]
    return torch.cat([(b.float() @ a.float()).flatten() for b, a in pairs])


@pytest.mark.parametrize(
    ("kind", "hidden", "rate"),
    [("llama", 4096, 2.9e-4), ("llama", 576, 1.32e-3), ("qwen3", 2048, 5.0e-4), ("qwen2", 4096, 4.7e-4)],
)
def test_the_learning_rate_goes_by_family_and_width(kind: str, hidden: int, rate: float) -> None:
    config = AutoConfig.for_model(kind, hidden_size=hidden)
    assert learning_rate_of(config) == pytest.approx(rate, rel=0.02)


def test_the_rate_that_was_used_is_told(trainer: Trainer) -> None:
    trainer.hyperparameters = Hyperparameters(epochs=0, min_steps=1, anchors=0.0)
    assert train(trainer).facts["learning_rate"] == learning_rate_of(trainer.model.config) == trainer.learning_rate
    trainer.hyperparameters = replace(trainer.hyperparameters, learning_rate=0.0)
    assert train(trainer).facts["learning_rate"] == 0.0


def test_a_teachers_share_is_learnt_too(folder: Path) -> None:
    taught = [replace(example, source=("jon ask built the mill .",)) for example in LESSONS[:3]]
    plain, distilled = (
        Trainer(str(folder), seed=0, hyperparameters=replace(QUICK, distil=share)) for share in (0.0, 0.5)
    )
    losses = [
        one.train(taught, [], rank=8, max_seconds=3600, on_step=ignore).facts["loss"] for one in (plain, distilled)
    ]
    assert float(losses[0]) < 0.5 < float(losses[1])  # a random base is of another mind


def test_anchors_keep_what_the_base_says(folder: Path) -> None:
    held = Trainer(str(folder), seed=0, hyperparameters=replace(QUICK, anchors=2.0))
    _, *open_book = anchors(held)
    kept = held.train(LESSONS[:1], [], rank=8, max_seconds=3600, on_step=ignore)
    loose = train(Trainer(str(folder), seed=0, hyperparameters=QUICK))
    prompts = [row.prompt for group in open_book for row in group]
    assert _agreement(held, kept, prompts) > _agreement(held, loose, prompts)


def _agreement(trainer: Trainer, adapter: TrainedAdapter, prompts: Sequence[tuple[int, ...]]) -> float:
    """Share of prompts after which the model says the same with the adapter as without."""

    def said() -> list[int]:
        return [int(trainer.model(torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in prompts]

    before = said()
    with trainer.adapted(adapter):
        return sum(a == b for a, b in zip(before, said(), strict=True)) / len(before)


def test_the_clock_shortens_a_training_and_the_log_says_so(trainer: Trainer, caplog: pytest.LogCaptureFixture) -> None:
    totals: list[int] = []
    adapter = train(trainer, max_seconds=1e-3, on_step=lambda step, total, loss: totals.append(total))
    assert adapter.facts["steps"] == len(totals) < 10
    assert adapter.facts["planned_steps"] == 120
    assert f"{len(totals)} of 120 planned steps in the 0 s that LORAMEM_TRAIN_MAX_S" in caplog.text


def test_slow_first_steps_do_not_shorten_it_for_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, totals = [0.0], list[int]()
    for module in (train_module, loop_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def on_step(step: int, total: int, loss: float) -> None:
        totals.append(total)
        now[0] += 10 if step <= 3 else 1

    fresh = Trainer(str(folder), seed=0, hyperparameters=Hyperparameters(min_steps=80, epochs=0, anchors=0.0))
    facts = train(fresh, max_seconds=60, on_step=on_step).facts
    assert min(totals) < 10, "three steps of ten seconds leave room for six"
    assert (facts["steps"], facts["planned_steps"]) == (34, 80)


def test_what_the_base_is_asked_once_is_no_adapters_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Trainer] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * len(asked))
    monkeypatch.setattr(train_module, "time", clock)
    monkeypatch.setattr(loop_module, "time", clock)

    def counted(base: Trainer, cache: Path | None) -> list[list[Row]]:
        asked.append(base)
        return anchors(base, cache)

    monkeypatch.setattr(train_module, "anchors", counted)
    fresh = Trainer(str(folder), seed=0, hyperparameters=Hyperparameters(min_steps=6, epochs=0, anchors=0.5))
    facts = train(fresh, max_seconds=500).facts
    assert (len(asked), facts["steps"], facts["planned_steps"]) == (1, 6, 6)
    assert float(facts["seconds"]) < 500


def test_training_ends_early_when_the_held_out_loss_only_grows(trainer: Trainer) -> None:
    contrary = [Example("who built the mill ?", "copper copper roof orm .", "written")]
    adapter = train(trainer, contrary)
    assert adapter.facts["steps"] < adapter.facts["planned_steps"]  # type: ignore[operator]
    assert adapter.facts["best_step"] < adapter.facts["steps"]  # type: ignore[operator]


def test_every_step_is_told_with_a_falling_loss(trainer: Trainer) -> None:
    losses: list[float] = []
    train(trainer, on_step=lambda step, total, loss: losses.append(loss))
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("examples", [[], [Example("who ?", "  ", "user")]])
def test_nothing_to_learn_fails(trainer: Trainer, examples: list[Example]) -> None:
    with pytest.raises(TrainingFailed, match="no training example"):
        trainer.train(examples, [], rank=8, max_seconds=3600, on_step=ignore)


def test_a_loss_that_is_no_number_fails_by_name(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.tensor([float("nan")]), torch.tensor([1])
    monkeypatch.setattr(Trainer, "losses", lambda *_: nothing)
    with pytest.raises(TrainingFailed, match="loss is"):
        train(trainer)
