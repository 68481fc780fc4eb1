import pytest

from benchmarks import paper_recipe
from benchmarks.paper_recipe import PaperRecipe
from benchmarks.sheets import Sheet
from benchmarks.train import Plain, Speed, compare, rows_of, side_by_side, summary
from loramem.base_model import BaseModel
from tests.trainer_worker.tiny import LESSONS, save_tiny_model
from trainer_worker.loop import Recipe

ROWS = [example for example in LESSONS if not example.context] * 8


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return BaseModel(path=save_tiny_model(tmp_path_factory.mktemp("tiny")), name="tiny", fingerprint="f")


def test_both_loops_measure_the_same_loss(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "learning_rate", 0.0)
    plain = Plain(base, 0)
    assert plain.train(ROWS, 1).loss == pytest.approx(plain.encoder.mean_loss(ROWS), rel=1e-3)


def test_both_loops_learn_and_count_the_rows_tokens(base: BaseModel) -> None:
    speeds = compare(base, ROWS, 6, 0)
    before = Plain(base, 0).encoder.mean_loss(ROWS)
    assert all(speed.loss < before for speed in speeds.values())
    counted = (6 * len(ROWS) // 16 - 1) * 16  # all but the first step's
    assert speeds["plain"].tokens == pytest.approx(counted * mean_tokens(base), rel=0.05)
    assert speeds["ours"].tokens >= 6 * len(ROWS) * mean_tokens(base)


def mean_tokens(base: BaseModel) -> float:
    encoder = Plain(base, 0).encoder
    return sum(encoder.row(example).tokens for example in ROWS) / len(ROWS)


def test_side_by_side_is_timed_against_one_by_one(base: BaseModel) -> None:
    assert set(side_by_side(base, [ROWS, ROWS[:8]], 0, smoke=True)) == {"at once", "one by one"}


def test_ratios_are_taken_within_a_round() -> None:
    fast, slow = Speed(200, 1.0, 0.1), Speed(100, 1.0, 0.2)
    report = summary([{"ours": fast, "plain": slow}], [{"at once": 2.0, "one by one": 2.2}])
    assert [(one["value"], one["ok"]) for one in report["checks"]] == [(2.0, True), (0.1, True), (1.1, False)]


def test_rows_are_made_by_rules_alone() -> None:
    rows = rows_of(Sheet("mill", "Hadle Mill", "Hadle Mill was built by Jon Ask in 1820. Its roof is copper.", []), 0)
    assert len(rows) > 3
    assert {row.answer for row in rows} <= {"Hadle Mill was built by Jon Ask in 1820.", "Hadle Mill's roof is copper."}


def test_the_papers_recipe_learns_whole_turns_and_leaves_the_base(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_recipe, "resolve_base_model", lambda settings: base)
    monkeypatch.setattr(paper_recipe, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(paper_recipe, "STEPS", 60)
    recipe = PaperRecipe(0)
    rows = [(example.question, example.answer) for example in LESSONS[:2]]
    before = recipe.answers(rows, ["who built the mill ?"], 0.0)
    after = recipe.answers(rows, ["who built the mill ?"], 60.0)
    assert before != after
    assert recipe.answers(rows, ["who built the mill ?"], 0.0) == before
