"""What an adapter holds: phone numbers to the digit, and facts that contradict the base model.

    python -m benchmarks.capacity --json [--smoke] [--only phonebook|sectors|counterfact|sweep] [--data FOLDER]
                                  [--model FOLDER] [--seed 0] [--plot FOLDER]

Trains with the worker's own trainer, without a server. `phonebook`: the 1K slice in one adapter. `sectors`: the 8K
slice in eight, each question put to the adapter that learnt its row. `counterfact`: the 1K slice of statements, scored
by which of two answers is likelier, with the adapter and without. `sweep` (hours on a CPU, so only when asked for) is
described in `benchmarks/capacity_sweep.py`; `--plot` draws it, `--ranks`, `--loads` and `--epochs` cut it down.
`--smoke` takes a few rows and steps, and checks that the loss falls. Data is looked for in `--data`, else
LORAMEM_BENCH_DATA, else `shared/data` beside the repository.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.capacity_sweep import Plan, load_pyplot, plot, share_of, sweep
from benchmarks.circumstances import check, circumstances, command_of
from benchmarks.counterfact import in_passing, read_counterfact, score
from benchmarks.phonebook import cut, read_phonebook, store
from benchmarks.sheets import read_sheets
from benchmarks.teach import Cost, teach
from loramem.base_model import BaseModel, resolve_base_model
from loramem.settings import load_settings
from loramem.supervise import SPIN_COUNT
from trainer_worker.loop import Hyperparameters
from trainer_worker.sentences import sentences
from trainer_worker.train import Trainer

PHONEBOOK = Hyperparameters(learning_rate=2e-3, epochs=40, anchors=0.0)
"""Rows without paraphrases: nothing to generalise to, so many epochs."""
COUNTERFACT = Hyperparameters(learning_rate=1e-3, epochs=10, anchors=0.0)
"""Answers of a token or two, asked in other words too, beside true statements that must stay: a gentler pull."""
BRIEF = Hyperparameters(learning_rate=2e-3, epochs=6, min_steps=12, warmup_steps=1, anchors=0.0)
RANK = 16
SHEETS = Path(__file__).with_name("sheets")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Bounds:
    exact_match: float = 1.0
    training_s: float = 150.0
    oracle: float = 0.95
    efficacy: float = 0.98
    paraphrase: float = 0.60
    neighbourhood_lost: float = 0.05


@dataclass(frozen=True)
class Size:
    """How much is learnt: the first `rows` of each slice, or all."""

    rows: int | None = None
    sectors: int = 8
    phonebook: Hyperparameters = PHONEBOOK
    counterfact: Hyperparameters = COUNTERFACT
    plan: Plan = field(default_factory=Plan)


SMOKE = Size(6, 2, BRIEF, BRIEF, Plan(ranks=(2, 4), loads=(1,), split_ranks=(4,), parts=2, rows=4))
BOUNDS = Bounds()
DUST = 1e-9
"""Of subtracting shares: 0.8 - 0.75 is a little more than 0.05."""
Check = dict[str, Any]


@dataclass(frozen=True)
class Part:
    figures: dict[str, Any]
    checks: list[Check]
    costs: list[Cost]


@dataclass(frozen=True)
class Run:
    trainer: Trainer
    data: Path
    size: Size


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a check fails."""
    options = _options(arguments)
    pyplot = load_pyplot() if options.plot else None
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # as the worker has it; read when Torch is loaded
    base = resolve_base_model(load_settings(**({"model": options.model} if options.model else {})))
    trainer = Trainer(str(base.path), seed=options.seed, base_name=base.name)
    run = Run(trainer, options.data, SMOKE if options.smoke else Size())
    if options.only == "sweep":
        figures = sweep(trainer, run.data, *_cut_down(run.size, options))
        parts = {"sweep": Part(figures, [], [])}
        if pyplot:
            plot(pyplot, figures, options.plot)
    else:
        parts = {name: PARTS[name](run) for name in ([options.only] if options.only else PARTS)}
    report = report_of(parts, run.size, smoke=options.smoke) | _base_of(base, trainer)
    report |= circumstances(command_of(_parser(), options), options.seed)
    print(json.dumps(report) if options.json else json.dumps(report, indent=2))
    return 0 if all(one["ok"] for one in report["checks"]) else 1


def phonebook(run: Run) -> Part:
    rows = read_phonebook(run.data, 1)[: run.size.rows]
    stored = store(run.trainer, run.size.phonebook, rows, RANK)
    checks = [
        at_least("phonebook 1K: exact match", stored.share, BOUNDS.exact_match),
        at_most("phonebook 1K: seconds of training", stored.cost.seconds, BOUNDS.training_s),
    ]
    return Part(stored.figures, checks, [stored.cost])


def sectors(run: Run) -> Part:
    rows = read_phonebook(run.data, 8)[: run.size.rows]
    stored = [store(run.trainer, run.size.phonebook, part, RANK) for part in cut(rows, run.size.sectors)]
    share = share_of(stored)
    name = f"phonebook 8K in {len(stored)} sectors: exact match with an oracle"
    figures = {"exact_match": round(share, 4), "rows": len(rows), "sectors": [one.figures for one in stored]}
    return Part(figures, [at_least(name, share, BOUNDS.oracle)], [one.cost for one in stored])


def counterfact(run: Run) -> Part:
    """Every statement is taught, bare and after another sentence; scored are those that the data set knows."""
    facts = read_counterfact(run.data, 1, run.size.rows)
    aside = [text for sheet in read_sheets(SHEETS) for text in sentences(sheet.text)]
    before = score(run.trainer, facts.edits)
    lessons = [*facts.lessons, *in_passing(facts.lessons, aside)]
    others = [*in_passing(facts.others[::2], aside), *facts.others[1::2]]
    adapter, cost = teach(run.trainer, run.size.counterfact, lessons, RANK, others)
    with run.trainer.adapted(adapter):
        after = score(run.trainer, facts.edits)
    lost = before["neighbourhood"] - after["neighbourhood"]
    checks = [
        at_least("counterfact 1K: efficacy", after["efficacy"], BOUNDS.efficacy),
        at_least("counterfact 1K: paraphrase", after["paraphrase"], BOUNDS.paraphrase),
        at_most("counterfact 1K: neighbourhood lost", lost, BOUNDS.neighbourhood_lost),
    ]
    scores = {
        side: {name: round(share, 4) for name, share in found.items()}
        for side, found in (("adapter", after), ("base", before))
    }
    counts = {"rows": len(facts.lessons), "joined": len(facts.edits), "true_statements": len(others)}
    return Part(counts | scores | cost.figures, checks, [cost])


PARTS: dict[str, Callable[[Run], Part]] = {"phonebook": phonebook, "sectors": sectors, "counterfact": counterfact}


def at_least(name: str, value: float, bound: float) -> Check:
    return check(name, round(value, 4), f">= {bound:g}", value > bound - DUST)


def at_most(name: str, value: float, bound: float) -> Check:
    return check(name, round(value, 4), f"<= {bound:g}", value < bound + DUST)


def report_of(parts: dict[str, Part], size: Size, *, smoke: bool) -> dict[str, Any]:
    """A smoke run is too short to promise a share, so that its checks are on the loss alone."""
    checks = [one for name, part in parts.items() for one in (learning(name, part.costs) if smoke else part.checks)]
    recipes = {"phonebook": asdict(size.phonebook), "counterfact": asdict(size.counterfact)}
    return {"parts": {name: part.figures for name, part in parts.items()}, "recipes": recipes, "checks": checks}


def learning(name: str, costs: Sequence[Cost]) -> list[Check]:
    """Whether every adapter's loss fell; none without adapters."""
    worst = max((cost.loss / cost.first_loss for cost in costs), default=0.0)
    return [check(f"{name}: loss, last step / first", round(worst, 4), "< 1", worst < 1)] if costs else []


def _cut_down(size: Size, options: argparse.Namespace) -> tuple[Hyperparameters, Plan]:
    ranks = options.ranks or size.plan.ranks
    split = tuple(rank for rank in size.plan.split_ranks if rank in ranks)
    plan = replace(size.plan, ranks=ranks, split_ranks=split)
    hyperparameters = replace(size.phonebook, epochs=options.epochs) if options.epochs else size.phonebook
    return hyperparameters, replace(plan, loads=options.loads) if options.loads else plan


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _base_of(base: BaseModel, trainer: Trainer) -> dict[str, Any]:
    import torch

    device = torch.cuda.get_device_name() if trainer.device == "cuda" else trainer.device
    return {"model": base.name, "fingerprint": base.fingerprint, "device": device}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.plot and options.only != "sweep":
        parser.error("--plot draws the sweep: add --only sweep")
    if not (options.data / "paper").is_dir():
        parser.error("no benchmark data found: set LORAMEM_BENCH_DATA or --data to a folder with `paper` in it")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.capacity", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=(*PARTS, "sweep"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LORAMEM_BENCH_DATA") or DATA))
    parser.add_argument("--model", help="`embedded`, a Hugging Face id or a local folder; default: LORAMEM_MODEL")
    parser.add_argument("--seed", type=int, default=0, help="of the adapters' A and of the order of rows")
    parser.add_argument(
        "--ranks", type=_numbers, help="of the sweep, with commas; those of them that the whole sweep splits are split"
    )
    parser.add_argument("--loads", type=_numbers, help="of the sweep, in thousand tokens, with commas")
    parser.add_argument("--epochs", type=float, help="of the sweep")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the sweep; needs matplotlib")
    parser.add_argument("--smoke", action="store_true", help="a few rows and steps")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
