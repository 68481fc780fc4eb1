import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from benchmarks import paper_recipe, sft
from benchmarks.paper_recipe import STEPS, TIMED, PaperRecipe, Trained, paced
from benchmarks.sheets import Sheet
from benchmarks.train import Plain, Sft, Speed, compare, learning, loss_before, rows_of, side_by_side, summary
from loramem.base_model import BaseModel
from tests.trainer_worker.tiny import LESSONS, save_tiny_model
from trainer_worker.packing import Row
from trainer_worker.train import Trainer

SPEED = Speed(200, 1.0, 0.1)
ROWS = [example for example in LESSONS if not example.context] * 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel(path=save_tiny_model(tmp_path_factory.mktemp("tiny")), name="tiny", fingerprint="f")


def test_both_loops_measure_the_same_loss(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "learning_rate", 0.0)
    plain = Plain(base, 0)
    assert plain.train(ROWS, 1).loss == pytest.approx(plain.encoder.mean_loss(ROWS), rel=1e-3)


def test_both_loops_learn_and_count_the_rows_tokens(base: BaseModel) -> None:
    speeds = compare(base, ROWS, 6, 0)
    assert learning(loss_before(base, ROWS, 0), [speeds])["ok"]
    theirs, ours = speeds["plain"], speeds["ours"]
    assert (theirs.steps, theirs.rows) == (ours.steps, round(ours.rows))
    counted = (theirs.steps - 1) * theirs.rows  # all but the first step's
    assert theirs.tokens == pytest.approx(counted * mean_tokens(base), rel=0.05)
    assert speeds["ours"].tokens >= 6 * len(ROWS) * mean_tokens(base)


@pytest.mark.parametrize(("loss", "fell"), [(0.1, 2), (1.0, 1), (math.nan, 1), (math.inf, 1)])
def test_a_smoke_run_promises_that_every_loss_fell_to_a_number(loss: float, fell: int) -> None:
    found = learning(1.0, [{"ours": SPEED, "plain": replace(SPEED, loss=loss)}])
    assert (found["value"], found["bound"], found["ok"]) == (fell, "= 2", fell == 2)


def mean_tokens(base: BaseModel) -> float:
    encoder = Plain(base, 0).encoder
    return sum(encoder.row(example).tokens for example in ROWS) / len(ROWS)


def test_side_by_side_is_timed_against_one_by_one(base: BaseModel) -> None:
    assert set(side_by_side(base, [ROWS, ROWS[:8]], 0, smoke=True)) == {"at once", "one by one"}


def test_ratios_are_taken_within_a_round() -> None:
    fast, slow = Speed(200, 1.0, 0.1), Speed(100, 1.0, 0.2)
    report = summary([{"ours": fast, "plain": slow}], [{"at once": 2.0, "one by one": 2.2}])
    assert [(one["value"], one["ok"]) for one in report["checks"]] == [(2.0, True), (0.1, True), (1.1, False)]


def test_without_trl_its_figures_are_null_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.trainer.sft_trainer", None)
    report = summary([{"ours": SPEED, "plain": SPEED}], [{"at once": 1.0, "one by one": 2.0}])
    assert report["sft"] is None
    assert "trl" in report["sft_reason"]


def test_with_trl_its_loop_stands_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft, "versions", lambda: {"trl": "1"})
    rounds = [{"ours": SPEED, "plain": SPEED, "sft": Speed(100, 2.0, 0.5)}]
    report = summary(rounds, [{"at once": 1.0, "one by one": 2.0}])
    assert report["sft"] == {"versions": {"trl": "1"}, "ours_times_its_token_rate": 4.0, "loss_less": 0.4}
    assert report["training"][0]["sft"]["tokens_per_s"] == 50.0


def test_trls_loop_gets_the_plain_loops_steps(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def train(model: Any, batches: Sequence[Sequence[Row]], tokenizer: Any, **options: Any) -> float:
        given.extend([batches, options["length"], options["learning_rate"]])
        return 1.0

    monkeypatch.setattr(sft, "train", train)
    monkeypatch.setattr(sft, "unavailable", lambda: None)
    speeds = compare(base, ROWS, 2, 0)
    plain = Plain(base, 0, round(speeds["plain"].rows))
    rows = [plain.encoder.row(example) for example in ROWS]
    assert given == [list(islice(plain._batches(rows), speeds["ours"].steps)), 32, plain.encoder.learning_rate]
    assert speeds["sft"].tokens == speeds["plain"].tokens
    assert speeds["sft"].loss == pytest.approx(plain.encoder.mean_loss(ROWS), rel=1e-3)


def test_trls_loop_learns_what_the_plain_one_does(base: BaseModel) -> None:
    if sft.unavailable():
        pytest.skip("TRL is in none of our locks; it is tested where somebody installed it")
    assert Sft(base, 0).train(ROWS, 6).loss == pytest.approx(Plain(base, 0).train(ROWS, 6).loss, rel=0.02)


def test_rows_are_made_by_rules_alone() -> None:
    rows = rows_of(Sheet("mill", "Hadle Mill", "Hadle Mill was built by Jon Ask in 1820. Its roof is copper.", []), 0)
    assert len(rows) > 3
    assert {row.answer for row in rows} <= {"Hadle Mill was built by Jon Ask in 1820.", "Hadle Mill's roof is copper."}


def test_the_papers_recipe_learns_whole_turns_and_leaves_the_base(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_recipe, "resolve_base_model", lambda settings: base)
    monkeypatch.setattr(paper_recipe, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(paper_recipe, "STEPS", 20)
    recipe = PaperRecipe(0)
    rows = [(example.question, example.answer) for example in LESSONS[:2]]
    before = recipe.answers(rows, ["who built the mill ?"], 0.0)
    after, trained = recipe.answers(rows, ["who built the mill ?"], 600.0)
    assert before[0] != after
    assert (trained.steps, trained.planned) == (20, 20)
    assert trained.loss is not None
    assert before[1] == Trained(0, 20, None)
    assert recipe.answers(rows, ["who built the mill ?"], 0.0) == before


class Slow:
    """Steps of a second, the first of which takes five; each notes the share of the learning rate that it was given."""

    def __init__(self, *, later_s: float = 1.0) -> None:
        self.now, self.later_s = 100.0, later_s
        self.shares: list[float] = []

    def __call__(self, share: float) -> float:
        self.now += 5.0 if not self.shares else 1.0 if len(self.shares) < TIMED else self.later_s
        self.shares.append(share)
        return 3.0 - 0.01 * len(self.shares)


def test_the_papers_schedule_is_gone_through_in_the_time_there_is() -> None:
    slow = Slow()
    trained = paced(slow, 64.0, lambda: slow.now)
    assert trained == Trained(60, 60, 2.4)
    assert slow.shares[:TIMED] == [0.0, 0.01, 0.02]  # timed, as of 1000 steps
    assert max(slow.shares) == slow.shares[6] == 1.0
    assert slow.shares[6:] == sorted(slow.shares[6:], reverse=True)
    assert slow.shares[-1] < 0.002


def test_with_time_enough_the_papers_schedule_is_its_own() -> None:
    torch = pytest.importorskip("torch")
    from transformers import get_cosine_schedule_with_warmup

    slow = Slow()
    assert paced(slow, 1e6, lambda: slow.now).steps == STEPS
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    (theirs,) = get_cosine_schedule_with_warmup(optimizer, STEPS // 10, STEPS).lr_lambdas
    assert slow.shares == pytest.approx([theirs(step) for step in range(STEPS)])


def test_steps_that_get_slower_are_cut_off_and_told() -> None:
    slow = Slow(later_s=2.0)
    assert paced(slow, 64.0, lambda: slow.now) == Trained(32, 60, 2.68)
    hasty = Slow()
    assert paced(hasty, 4.0, lambda: hasty.now) == Trained(1, STEPS, 2.99)
