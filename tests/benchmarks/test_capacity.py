import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import capacity, capacity_sweep
from benchmarks.capacity import (
    BOUNDS,
    Part,
    Run,
    Size,
    _cut_down,
    _parser,
    at_least,
    at_most,
    learning,
    main,
    report_of,
)
from benchmarks.capacity_sweep import Plan, efficiency, load_pyplot, plot, sweep
from benchmarks.counterfact import Edit, Slice
from benchmarks.phonebook import Stored, store
from benchmarks.teach import Cost
from loramem.base_model import BaseModel
from tests.trainer_worker.tiny import save_tiny_model
from trainer_worker import packing
from trainer_worker.examples import Example
from trainer_worker.loop import Hyperparameters
from trainer_worker.train import Trainer

COST = Cost(rank=16, parameters=1_000_000, steps=10, seconds=20.0, first_loss=4.0, loss=0.1)
WORDS = ["larch", "copper", "brick", "orm"]
ROWS = [Example(f"what is the {word} ?", word, "user") for word in WORDS]
QUICK = Hyperparameters(learning_rate=1e-2, epochs=1, min_steps=60, frozen_layers=0.0, anchors=0.0)
EDIT = Edit("the roof is", "larch", "copper", "what is the roof ?", "the wheel is", "copper")


@pytest.fixture(autouse=True)
def _short_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LANE_TOKENS", 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def trainer(model: Path) -> Trainer:
    return Trainer(str(model), seed=0)


@pytest.fixture
def run(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Real training of a tiny model, on rows that need no file."""
    for module in (capacity, capacity_sweep):
        monkeypatch.setattr(module, "read_phonebook", lambda data, load: ROWS)
    lessons = [Example(f"Complete the sentence: {EDIT.prompt}", EDIT.target_new, "user")]
    monkeypatch.setattr(capacity, "read_counterfact", lambda data, load, rows: Slice(lessons, [EDIT]))
    return Run(trainer, Path(), Size(sectors=2, phonebook=QUICK, counterfact=QUICK))


def test_bounds_hold_at_the_bound_and_not_beyond() -> None:
    assert at_least("a", 0.95, 0.95) == {"name": "a", "value": 0.95, "bound": ">= 0.95", "ok": True}
    assert not at_least("a", 0.9499, 0.95)["ok"]
    assert at_most("b", 150, 150)["ok"]
    assert not at_most("b", 150.1, 150)["ok"]


def test_a_phone_book_is_stored_and_asked(trainer: Trainer) -> None:
    stored = store(trainer, QUICK, ROWS, 4)
    assert (stored.rows, stored.right, stored.cost.steps) == (4, 4, 60)
    assert stored.cost.loss < stored.cost.first_loss
    assert store(trainer, QUICK, ROWS, 8).cost.parameters == 2 * stored.cost.parameters


def test_phonebook_promises_all_numbers_within_the_time(run: Run) -> None:
    part = capacity.phonebook(run)
    exact, seconds = part.checks
    assert (exact["value"], exact["bound"], exact["ok"]) == (1.0, ">= 1", True)
    assert (seconds["value"], seconds["bound"]) == (round(part.costs[0].seconds, 4), f"<= {BOUNDS.training_s:g}")


def test_each_sector_is_asked_of_its_own_adapter(run: Run) -> None:
    part = capacity.sectors(run)
    assert [one["rows"] for one in part.figures["sectors"]] == [2, 2]
    assert (part.figures["exact_match"], part.checks[0]["ok"], len(part.costs)) == (1.0, True, 2)


def test_counterfact_compares_with_the_base(run: Run) -> None:
    part = capacity.counterfact(run)
    assert (part.figures["rows"], part.figures["joined"]) == (1, 1)
    assert part.figures["adapter"]["efficacy"] == 1.0
    assert set(part.figures["base"]) == {"efficacy", "paraphrase", "neighbourhood"}


@pytest.mark.parametrize(("before", "after", "ok"), [(0.8, 0.75, True), (0.8, 0.7, False), (0.7, 0.8, True)])
def test_only_a_drop_of_the_neighbourhood_counts(
    run: Run, monkeypatch: pytest.MonkeyPatch, before: float, after: float, ok: bool
) -> None:
    scores = iter({"efficacy": 1.0, "paraphrase": 1.0, "neighbourhood": value} for value in (before, after))
    monkeypatch.setattr(capacity, "score", lambda *_: next(scores))
    assert [one["ok"] for one in capacity.counterfact(run).checks] == [True, True, ok]


def test_a_smoke_run_is_judged_by_its_loss_alone() -> None:
    part = Part({"right": 1}, [at_least("x", 0.1, 1.0)], [COST, replace(COST, loss=2.0)])
    assert [one["ok"] for one in report_of({"x": part}, Size(), smoke=False)["checks"]] == [False]
    (one,) = report_of({"x": part}, Size(), smoke=True)["checks"]
    assert (one["value"], one["ok"]) == (0.5, True)
    assert not learning("x", [COST, replace(COST, loss=4.0)])[0]["ok"]
    assert learning("sweep", []) == []


def test_a_sweep_has_every_rank_and_load_and_equal_parameters_beside_each_other(run: Run) -> None:
    plan = Plan(ranks=(2, 4), loads=(1, 2), split_ranks=(4,), parts=2)
    figures = sweep(run.trainer, run.data, QUICK, plan)
    assert [(one["load"], one["rank"]) for one in figures["grid"]] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    (split,) = figures["split"]
    assert (split["small"]["adapters"], split["small"]["rank"], split["large"]["rank"]) == (2, 2, 4)
    assert split["small"]["parameters"] == split["parameters"]
    json.dumps(figures)


def test_efficiency_takes_the_greatest_load_that_is_held() -> None:
    figures = [("2", 48, 1.0), ("2", 97, 0.93), ("2", 193, 0.5), ("4", 48, 0.2)]
    grid = [{"rank": r, "rows": n, "exact_match": share, "parameters": 500_000} for r, n, share in figures]
    assert efficiency(grid) == {"2": 194.0, "4": 0.0}


@pytest.mark.parametrize("wrong", [{"split_ranks": (128,)}, {"split_ranks": (16,), "parts": 3}])
def test_a_split_that_cannot_be_equal_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="split ranks"):
        Plan(**wrong)


def test_without_matplotlib_plotting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="matplotlib"):
        load_pyplot()


def test_four_drawings_are_written(tmp_path: Path) -> None:
    small, large = {"exact_match": 1.0}, {"exact_match": 0.5}
    grid = [{"load": load} | Stored(48, 40, COST).figures for load in (1, 2)]
    plot(Paper(), {"grid": grid, "split": [{"parameters": 9, "large": large, "small": small}]}, tmp_path / "new")
    drawn = {file.stem: file.read_text() for file in (tmp_path / "new").iterdir()}
    assert set(drawn) == {"rank", "load", "efficiency", "split"}
    assert drawn["split"] == "adapters large: (9,) (0.5,)\nadapters small: (9,) (1.0,)"
    assert drawn["load"] == "rank 16: (1, 2) (0.8333, 0.8333)"


class Paper:
    """As much of matplotlib's interface as is drawn with; a file holds the lines as text."""

    def subplots(self) -> tuple[Any, Any]:
        lines: list[str] = []
        drawing = SimpleNamespace(
            plot=lambda x, y, marker, label: lines.append(f"{label}: {x} {y}"),
            set_xscale=lambda scale, base: None,
            set_xticks=lambda ticks, labels: None,
            set=lambda xlabel, ylabel: None,
            legend=lambda: None,
        )
        figure = SimpleNamespace(savefig=lambda file, dpi, bbox_inches: file.write_text("\n".join(lines)))
        return figure, drawing

    def close(self, figure: object) -> None: ...


@pytest.mark.parametrize(
    ("given", "split"), [([], (16, 32, 64)), (["--ranks", "1,4,16"], (16,)), (["--ranks", "2"], ())]
)
def test_a_sweep_cut_down_splits_those_ranks_that_the_whole_one_splits(
    given: list[str], split: tuple[int, ...]
) -> None:
    hyperparameters, plan = _cut_down(Size(), _parser().parse_args([*given, "--loads", "1,4", "--epochs", "3"]))
    assert (plan.split_ranks, plan.loads, hyperparameters.epochs) == (split, (1, 4), 3)


def test_plotting_anything_but_the_sweep_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--plot", "here"])
    assert "add --only sweep" in capsys.readouterr().err


def test_missing_data_is_named_by_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORAMEM_BENCH_DATA", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["--json"])
    assert "LORAMEM_BENCH_DATA" in capsys.readouterr().err


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("only", [None, "phonebook", "sweep"])
def test_the_last_line_is_one_object_without_a_path(
    only: str | None,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "paper").mkdir()
    monkeypatch.setattr(capacity, "resolve_base_model", lambda settings: BaseModel(model, "tiny", "f" * 64))
    arguments = ["--json", "--smoke", "--seed", "3", "--data", str(tmp_path), *(["--only", only] if only else [])]
    assert main(arguments) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    report = json.loads(line)
    assert {"machine", "versions", "command", "seed", "checks", "parts", "recipes", "model", "device"} <= set(report)
    said = f" --only {only}" if only else ""
    assert report["command"] == f"python -m benchmarks.capacity --json{said} --data FOLDER --seed 3 --smoke"
    assert list(report["parts"]) == ([only] if only else ["phonebook", "sectors", "counterfact"])
    assert str(tmp_path) not in line
    assert str(model) not in line
