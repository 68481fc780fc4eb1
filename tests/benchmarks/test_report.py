import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import capacity, q15, q15_plan, recall, recipes
from benchmarks import report_findings as findings
from benchmarks.recall_methods import chosen_methods
from benchmarks.report import main, read_results
from benchmarks.report_findings import Estimate, Finding, greater, model_size
from benchmarks.report_questions import QUESTIONS, Question

Json = dict[str, Any]


def recalled(data_set: str, methods: Mapping[str, float], *, model: str = "tiny-135m", width: float = 0.01) -> Json:
    """A result of `benchmarks.recall` with ROUGE-L alone."""
    return {
        "command": f"python -m benchmarks.recall --json --dataset {data_set}",
        "settings": {"data_set": data_set, "model": model, "smoke": False, "draw": "d"},
        "methods": {
            name: {
                "state": "done",
                "scores": {"rouge_l": {"mean": mean, "interval": [mean - width, mean + width]}},
                "latency_ms_p50": 1000 * mean,
                "minus": {},
            }
            for name, mean in methods.items()
        },
        "machine": {"processor": "P"},
        "seed": 0,
    }


def swept(*entries: tuple[float, int, float], efficiency: Mapping[str, float], split: list[Json]) -> Json:
    """(load, rank, stored bits) of 100 bits each thousand tokens."""
    grid = [
        {"load": load, "rank": rank, "stored_bits": bits, "load_bits": 100 * load, "parameters": 1000 * rank}
        | {"right": 1, "rows": 9}
        for load, rank, bits in entries
    ]
    return {"command": "sweep", "parts": {"sweep": {"grid": grid, "efficiency": efficiency, "split": split}}}


def timed(icl: float) -> Json:
    """Of all methods 400 ms an answer, but for `icl`."""
    methods = {name: {"wall_ms": {"mean": 400.0}} for name in q15_plan.METHODS}
    own = methods | {q15_plan.ICL: {"wall_ms": {"mean": icl}}}
    report = {"loramem": own, "reference": methods, "settings": {"smoke": False}}
    return report | {"command": "python -m benchmarks.q15 --json --questions 30"}


def arms(**scores: float) -> Json:
    done = {"formats=" + name: {"score": mean, "interval": [mean, mean]} for name, mean in scores.items()}
    settings = {"data": "paperqa", "metric": "ROUGE-L", "smoke": False}
    return {"command": "python -m benchmarks.recipes --json", "settings": settings, "arms": done}


SWEEP = swept((1, 1, 50), (1, 4, 90), (8, 1, 60), (8, 4, 300), efficiency={"1": 5.0, "4": 3.0}, split=[])
FULL = {"small": {"exact_match": 0.9}, "large": {"exact_match": 0.4}}
GOOD = {"lora:oracle": 0.9, "lora-top3": 0.6, "lora": 0.5, "lora-top5": 0.3, "single": 0.7, "hybrid-icl-top3": 0.8}


@pytest.mark.parametrize(
    ("find", "report", "verdict"),
    [
        (findings.rank, SWEEP, "agree"),
        (findings.rank, swept((1, 1, 50), (1, 4, 40), efficiency={}, split=[]), "disagree"),
        (findings.rank, swept((1, 1, 50), efficiency={}, split=[]), None),
        (findings.load, SWEEP, "agree"),
        (findings.load, swept((1, 1, 50), (8, 1, 500), efficiency={}, split=[]), "disagree"),
        (findings.efficiency, SWEEP, "agree"),
        (findings.efficiency, swept(efficiency={"1": 2.0, "4": 3.0}, split=[]), "disagree"),
        (findings.efficiency, swept((1, 1, 50), (1, 4, 90), efficiency={"1": 0.0}, split=[]), "not measured"),
        (findings.partition, swept(efficiency={}, split=[FULL]), "agree"),
        (findings.partition, SWEEP, None),
        (findings.formats, arms(original=0.1, qa40=0.3, summary8=0.2, rewrite4=0.2), "agree"),
        (findings.formats, arms(original=0.1, qa40=0.3, summary8=0.0, rewrite4=0.2), "disagree"),
        (findings.formats, arms(original=0.1, qa40=0.3), None),
        (findings.routing, recalled("paperqa", GOOD), "agree"),
        (findings.merging, recalled("paperqa", GOOD), "agree"),
        (findings.merging, recalled("paperqa", GOOD, width=0.2), "undecided"),
        (findings.count, recalled("squad", GOOD), "agree"),
        (findings.long_documents, recalled("narrativeqa", GOOD), "agree"),
        (findings.long_documents, recalled("paperqa", GOOD), None),
        (findings.context, recalled("narrativeqa", GOOD), "agree"),
        (findings.continuity, recalled("quality", {"lora": 0.5, "lora-top3": 0.4}), "disagree"),
        (findings.latency, recalled("narrativeqa", {"icl": 0.9, "lora-top3": 0.4}), "agree"),
        (findings.latency, recalled("narrativeqa", {"icl": 0.3, "lora-top3": 0.4}), "disagree"),
        (findings.latency, timed(icl=900.0), "agree"),
        (findings.latency, timed(icl=200.0), "disagree"),
    ],
)
def test_a_result_agrees_with_the_paper_or_not(
    find: Callable[[Mapping[str, Json]], Finding | None], report: Json, verdict: str | None
) -> None:
    found = find({"a.json": {"checks": []}, "b.json": report})
    assert (found and found.verdict) == verdict
    assert found is None or found.file == "b.json"


def test_paired_differences_decide_before_overlapping_intervals() -> None:
    report = recalled("paperqa", GOOD, width=0.2)
    report["methods"]["lora-top3"]["minus"] = {"lora": {"rouge_l": {"mean": 0.1, "interval": [0.05, 0.15]}}}
    report["methods"]["lora-top5"]["minus"] = {"lora": {"rouge_l": {"mean": -0.2, "interval": [-0.3, -0.1]}}}
    merged, counted = findings.merging({"a.json": report}), findings.count({"a.json": report})
    assert merged is not None
    assert counted is not None
    assert (merged.verdict, counted.verdict) == ("agree", "agree")  # the difference of the second pair is turned round


def test_mixtures_are_as_good_as_the_best_of_them() -> None:
    report = arms(qa40=0.3, all=0.1, **{"summary8+qa40": 0.4, "qa40+original": 0.2, "rewrite4+qa40": 0.1})
    found = findings.mixtures({"a.json": report})
    assert found is not None
    assert found.verdict == "agree"


def test_models_are_compared_by_their_size_on_the_same_draw() -> None:
    small = recalled("paperqa", {"lora": 0.2}, model="smollm2-135m")
    large = recalled("paperqa", {"lora": 0.4}, model="Llama-3.1-8B-Instruct")
    found = findings.scale({"z.json": small, "a.json": large})
    assert found is not None
    assert (found.file, found.verdict) == ("z.json, a.json", "agree")
    other = large | {"settings": large["settings"] | {"draw": "other"}}
    assert findings.scale({"a.json": small, "b.json": other}) is None
    assert [model_size(name) for name in ("smollm2-135m", "Qwen3-0.6B", "tiny")] == [135, 600, None]


def test_intervals_that_touch_decide_nothing() -> None:
    one, other = Estimate(0.5, (0.4, 0.6)), Estimate(0.7, (0.6, 0.8))
    assert greater(other, one) == greater(one, other) == "undecided"
    assert greater(Estimate(0.7, (0.61, 0.8)), one) == "agree"
    assert greater(one, Estimate(0.7)) == "disagree"


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for name, found in (("sweep", SWEEP), ("papers", recalled("paperqa", GOOD))):
        (folder / f"{name}.json").write_text(json.dumps(found))
    written = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        assert main(["--results", str(folder), "--out", str(tmp_path / place / "R.md")]) == 0
        files = sorted(file for file in (tmp_path / place).rglob("*") if file.is_file())
        written.append({str(file.relative_to(tmp_path / place)): file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert {"R.md", "plots/q01.svg", "plots/q09.png"} <= set(written[0])
    text = written[0]["R.md"].decode()
    assert "| Q9 | What does real routing cost? | agree | papers.json |" in text
    assert "lora:oracle 0.900 (0.890 to 0.910); lora 0.500" in text
    assert text.count("Ours: not measured.") == 15 - text.count("Verdict: **")
    assert str(tmp_path) not in text


def test_a_plot_whose_result_is_gone_goes_too(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP))
    given = ["--results", str(tmp_path), "--out", str(tmp_path / "R.md")]
    main(given)
    assert (tmp_path / "plots" / "q01.png").exists()
    (tmp_path / "sweep.json").unlink()
    main(given)
    assert list((tmp_path / "plots").iterdir()) == []


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{,")
    with pytest.raises(SystemExit, match=r"a\.json is not JSON"):
        read_results(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(SystemExit, match="no JSON object"):
        read_results(tmp_path)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: f"Q{question.number}")
def test_every_command_is_one_that_the_benchmarks_take(question: Question, tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    for command in (question.command, question.large_command):
        python, m, module, *given = shlex.split(command.splitlines()[-1])
        assert (python, m) == ("python", "-m")
        if module == "benchmarks.capacity":
            capacity._options([*given, "--data", str(tmp_path)])
        elif module == "benchmarks.recipes":
            recipes._options(given)
        elif module == "benchmarks.q15":
            q15._parser().parse_args(given)
        else:
            assert module == "benchmarks.recall"
            assert chosen_methods(recall._parser().parse_args(given).methods)


def test_the_questions_are_the_papers_fifteen() -> None:
    assert [question.number for question in QUESTIONS] == list(range(1, 16))
