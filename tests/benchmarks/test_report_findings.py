"""Verdicts of `benchmarks.report`, question by question, and what is told beside them."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from benchmarks import report_findings, report_sweeps, report_times
from benchmarks.report_findings import model_size
from benchmarks.report_verdicts import Estimate, Finding, greater, over_documents

Json = dict[str, Any]


def recalled(
    data_set: str,
    methods: Mapping[str, float],
    *,
    model: str = "tiny-135m",
    width: float = 0.01,
    documents: int = 9,
    routed_right: float = 0.97,
    astray: float | None = None,
) -> Json:
    """A result of `benchmarks.recall` with ROUGE-L alone; `astray`: what merging gains where routing is wrong."""
    report = _recalled(data_set, methods, model, width, documents, routed_right)
    if astray is not None:
        minus = {"lora": {"rouge_l": {"mean": astray, "interval": [astray - width, astray + width]}}}
        report["methods"]["lora-top3"]["misrouted"] = {"questions": 12, "documents": 5, "minus": minus}
    return report


def _recalled(
    data_set: str, methods: Mapping[str, float], model: str, width: float, documents: int, routed_right: float
) -> Json:
    return {
        "command": f"python -m benchmarks.recall --json --dataset {data_set}",
        "settings": {"data_set": data_set, "model": model, "smoke": False, "draw": "d"},
        "methods": {
            name: {
                "state": "done",
                "questions": 30,
                "documents": documents,
                "scores": {"rouge_l": {"mean": mean, "interval": [mean - width, mean + width] if width else None}},
                "router_first": {"mean": routed_right, "interval": None},
                "latency_ms_p50": 1000 * mean,
                "minus": {},
            }
            for name, mean in methods.items()
        },
        "machine": {"processor": "P"},
        "seed": 0,
    }


def swept(
    *entries: tuple[float, int, float], efficiency: Mapping[str, float], split: list[Json], learnt: bool = True
) -> Json:
    """(load, rank, stored bits) of 100 bits each thousand tokens."""
    told = {"right": 8, "rows": 9, "exact_match": 0.8889, "first_loss": 2.4, "loss": 0.01}
    if not learnt:
        told |= {"right": 3, "rows": 193, "exact_match": 0.0155, "loss": 0.57}
    grid = [
        {"load": load, "rank": rank, "stored_bits": bits, "load_bits": 100 * load, "parameters": 1000 * rank} | told
        for load, rank, bits in entries
    ]
    sweep = {"grid": grid, "efficiency": efficiency, "split": split, "epochs": 12.0}
    return {"command": "sweep", "parts": {"sweep": sweep}}


def arms(scores: Mapping[str, float], documents: int = 15) -> Json:
    done = {"formats=" + name: {"score": mean, "interval": [mean, mean]} for name, mean in scores.items()}
    settings = {"data": "paperqa", "metric": "ROUGE-L", "smoke": False, "documents": documents}
    return {"command": "python -m benchmarks.recipes --json", "settings": settings, "arms": done}


SWEEP = swept((1, 1, 50), (1, 4, 90), (8, 1, 60), (8, 4, 300), efficiency={"1": 5.0, "4": 3.0}, split=[])
HASTY = swept((4, 1, 50), (4, 4, 90), (8, 1, 55), (8, 4, 95), efficiency={"1": 0.0}, split=[], learnt=False)
FULL = {"small": {"exact_match": 0.9}, "large": {"exact_match": 0.4}}
FORMATS = {"original": 0.1, "qa40": 0.3, "summary8": 0.2, "rewrite4": 0.2}
GOOD = {"lora:oracle": 0.9, "lora-top3": 0.6, "lora": 0.5, "lora-top5": 0.3, "single": 0.7, "hybrid-icl-top3": 0.8}


def found_in(find: Callable[[Mapping[str, Json]], Finding | None], report: Json) -> Finding:
    found = find({"a.json": report})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("find", "report", "verdict"),
    [
        (report_sweeps.rank, SWEEP, "agree"),
        (report_sweeps.rank, swept((1, 1, 50), (1, 4, 40), efficiency={}, split=[]), "disagree"),
        (report_sweeps.rank, swept((1, 1, 50), efficiency={}, split=[]), None),
        (report_sweeps.rank, HASTY, "not measured"),
        (report_sweeps.load, SWEEP, "agree"),
        (report_sweeps.load, swept((1, 1, 50), (8, 1, 500), efficiency={}, split=[]), "disagree"),
        (report_sweeps.load, HASTY, "not measured"),
        (report_sweeps.efficiency, SWEEP, "agree"),
        (report_sweeps.efficiency, swept(efficiency={"1": 2.0, "4": 3.0}, split=[]), "disagree"),
        (report_sweeps.efficiency, HASTY, "not measured"),
        (report_sweeps.partition, swept(efficiency={}, split=[FULL]), "agree"),
        (report_sweeps.partition, SWEEP, None),
        (report_findings.formats, arms(FORMATS), "agree"),
        (report_findings.formats, arms(FORMATS | {"summary8": 0.0}), "disagree"),
        (report_findings.formats, arms(FORMATS | {"summary8": 0.4}), "disagree"),
        (report_findings.formats, arms(FORMATS, documents=1), "undecided"),
        (report_findings.formats, arms({"original": 0.1, "qa40": 0.3}), None),
        (report_findings.routing, recalled("paperqa", GOOD), "agree"),
        (report_findings.routing, recalled("paperqa", GOOD, width=0, documents=1), "undecided"),
        (report_findings.merging, recalled("paperqa", GOOD, astray=0.1), "agree"),
        (report_findings.merging, recalled("paperqa", GOOD, astray=-0.1), "agree"),
        (report_findings.merging, recalled("paperqa", GOOD | {"lora-top3": 0.4}, astray=0.1), "disagree"),
        (report_findings.merging, recalled("paperqa", GOOD | {"lora-top3": 0.51}, astray=0.1), "undecided"),
        (report_findings.merging, recalled("paperqa", GOOD | {"lora-top3-cat": 0.9}, astray=0.1), "disagree"),
        (report_findings.merging, recalled("paperqa", GOOD), "not measured"),
        (report_findings.merging, recalled("paperqa", {"lora": 0.5}), None),
        (report_findings.count, recalled("squad", GOOD), "agree"),
        (report_findings.long_documents, recalled("narrativeqa", GOOD), "agree"),
        (report_findings.long_documents, recalled("paperqa", GOOD), None),
        (report_findings.context, recalled("narrativeqa", GOOD), "agree"),
        (report_findings.continuity, recalled("quality", {"lora": 0.5, "lora-top3": 0.4}), "disagree"),
        (report_findings.continuity, recalled("quality", GOOD | {"hybrid-icl": 0.9}), "disagree"),
        (report_times.latency, recalled("narrativeqa", {"icl": 0.9, "lora-top3": 0.4}), "agree"),
        (report_times.latency, recalled("narrativeqa", {"icl": 0.3, "lora-top3": 0.4}), "disagree"),
        (report_times.latency, recalled("narrativeqa", {"icl": 0.9, "lora-top3": 0.4}, documents=1), "undecided"),
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
    report["methods"]["lora"]["minus"] = {"lora:oracle": {"rouge_l": {"mean": -0.2, "interval": [-0.3, -0.1]}}}
    routed = found_in(report_findings.routing, report)
    report["settings"]["data_set"] = "quality"
    long = found_in(report_findings.continuity, report)
    assert (long.verdict, routed.verdict) == ("agree", "agree")  # the difference of the second pair is turned round
    assert long.notes[0].startswith("lora-top3 less lora, question by question: 0.100 (0.038 to 0.162); 9 documents")
    assert routed.notes == (
        "lora:oracle less lora, question by question: 0.200 (0.075 to 0.325); 9 documents, 30 questions.",
    )
    report["methods"]["lora-top3"] |= {"documents": 1}
    report["settings"]["data_set"] = "quality"
    assert found_in(report_findings.continuity, report).verdict == "undecided"


def test_few_documents_need_a_wider_interval_to_decide() -> None:
    """The bootstrap's own lies above zero, at nine documents it does not; nothing is known where nobody counted."""
    report = recalled("quality", {"lora": 0.5, "lora-top3": 0.6})
    report["methods"]["lora-top3"]["minus"] = {"lora": {"rouge_l": {"mean": 0.1, "interval": [0.01, 0.3]}}}
    assert found_in(report_findings.continuity, report).verdict == "undecided"
    report["methods"]["lora-top3"]["documents"] = 200
    assert found_in(report_findings.continuity, report).verdict == "agree"
    assert over_documents(0.5, [0.4, 0.8], None).interval == (0.4, 0.8)
    assert over_documents(0.5, [0.4, 0.8], 9).interval == pytest.approx((0.5 - 0.12479, 0.5 + 0.37438), abs=1e-4)
    assert over_documents(0.5, None, 9).interval is None


def test_each_more_that_is_merged_has_to_score_less() -> None:
    found = found_in(report_findings.count, recalled("paperqa", GOOD | {"lora-top2": 0.4, "lora-top3": 0.35}))
    assert (found.verdict, found.why, len(found.notes)) == ("agree", "", 5)
    level = found_in(report_findings.count, recalled("paperqa", GOOD | {"lora-top2": 0.4, "lora-top3": 0.4}))
    assert (level.verdict, level.why) == ("undecided", "one over five: agree, less with each one more: undecided")
    rising = found_in(report_findings.count, recalled("paperqa", GOOD | {"lora-top2": 0.4, "lora-top3": 0.45}))
    assert (rising.verdict, rising.why) == ("disagree", "one over five: agree, less with each one more: disagree")


def test_merging_is_judged_over_all_questions() -> None:
    """By the way it is told what merging does where routing is wrong, and what it costs by itself."""
    oracles = {"lora-top3": 0.06, "lora": 0.18, "lora-top3:oracle3": 0.061, "lora:oracle": 0.187}
    report = recalled("paperqa", oracles | {"lora-top3-cat": 0.1}, astray=0.05)
    alone = {"questions": 12, "documents": 5, "minus": {"lora": {"rouge_l": {"mean": 0.2, "interval": None}}}}
    report["methods"]["lora-top3-cat"]["misrouted"] = alone
    found = found_in(report_findings.merging, report)
    assert (found.verdict, found.why) == ("disagree", "where routing is wrong: agree")
    whole, concatenated, astray, interference, missing = found.notes
    assert whole.startswith("lora-top3 and lora, unpaired")
    assert concatenated.startswith("lora-top3 and lora-top3-cat, unpaired")
    assert astray == (
        "On the 12 questions whose first adapter is of a wrong document, less lora: lora-top3 0.050 (0.034 to 0.066), "
        "concatenation 0.200; 5 documents."
    )
    assert interference.endswith("(lora-top3:oracle3 against lora:oracle, `a.json`): rouge_l 0.061 against 0.187.")
    assert missing == "Other merges of the paper, not measured: linear, DARE."
    report["methods"]["lora-top3"]["misrouted"]["questions"] = 9
    few = found_in(report_findings.merging, report)
    told = (whole, concatenated, interference, missing)
    assert (few.verdict, few.why, few.notes) == ("not measured", "97 % routed right", told)
    other = recalled("squad", GOOD, astray=0.05)
    preferred = report_findings.merging({"a.json": report, "b.json": other})
    assert preferred is not None
    assert (preferred.file, preferred.verdict) == ("b.json", "agree")
    assert preferred.notes[2] == interference  # of the run that has it


def test_what_stays_open_where_routing_is_wrong_is_told() -> None:
    report = recalled("paperqa", GOOD | {"lora-top3-dare": 0.1}, astray=0.05)
    for one in report["methods"].values():
        one["scores"]["f1"] = one["scores"]["rouge_l"]
    minus = report["methods"]["lora-top3"]["misrouted"]["minus"]["lora"]
    minus["f1"] = {"mean": 0.04, "interval": [-0.01, 0.09]}
    found = found_in(report_findings.merging, report)
    assert (found.verdict, found.why) == ("agree", "where routing is wrong: agree")
    assert "lora-top3 0.050 (0.034 to 0.066), by f1 0.040 (-0.039 to 0.119); 5 documents." in found.notes[2]
    assert found.notes[2].endswith("The interval of lora-top3 there holds 0 by f1.")
    report["methods"]["lora-top3-dare"]["scores"]["rouge_l"]["mean"] = 0.9
    report["methods"]["lora-top3-dare"]["scores"]["rouge_l"]["interval"] = None
    parts = "TIES over the one routed: agree, over DARE: disagree"
    assert found_in(report_findings.merging, report).why == f"{parts}; where routing is wrong: agree"


@pytest.mark.parametrize(
    ("concatenation", "linear", "told"), [(0.06, -0.02, True), (0.04, -0.02, False), (0.06, 0.01, False)]
)
def test_other_merges_that_stand_the_other_way_round_are_told(concatenation: float, linear: float, told: bool) -> None:
    report = recalled("paperqa", GOOD | {"lora-top3-cat": 0.1, "lora-top3-linear": 0.1}, astray=0.05)
    for method, mean in (("lora-top3-cat", concatenation), ("lora-top3-linear", linear)):
        minus = {"lora": {"rouge_l": {"mean": mean, "interval": None}}}
        report["methods"][method]["misrouted"] = {"questions": 12, "documents": 5, "minus": minus}
    notes = found_in(report_findings.merging, report).notes
    note = "By their means concatenation beats TIES there and linear loses to the one routed, against the paper."
    assert (note in notes) == told


def test_text_that_was_cut_is_told() -> None:
    report = recalled("narrativeqa", GOOD | {"icl": 0.4})
    report["methods"]["icl"]["text_cut"] = {"mean": 0.75, "interval": None}
    report["methods"]["hybrid-icl-top3"]["text_cut"] = {"mean": 0.0, "interval": None}
    _, cut = found_in(report_findings.context, report).notes
    assert cut == "The text of icl was cut to fit the window at 75 % of its questions."


def test_unfinished_training_says_how_fast_ranks_learn() -> None:
    found = found_in(report_sweeps.rank, HASTY)
    assert found.measure.startswith("bits stored after 12 epochs (rows right to the digit: 3 of 193, 3 of 193")
    assert found.why == "training had not converged"
    assert "2.40 to 0.57" in found.notes[0]
    half = swept((1, 1, 50), (1, 4, 90), (4, 1, 55), (4, 4, 40), efficiency={}, split=[])
    for entry in half["parts"]["sweep"]["grid"][2:]:
        entry["loss"] = 0.57
    assert found_in(report_sweeps.rank, half).verdict == "agree"  # by the load that was learnt, alone


def test_what_is_known_by_heart_cannot_be_known_better() -> None:
    """Of such adapters the last hundredth of a bit is chance."""
    report = swept((1, 1, 99.9), (1, 4, 99.8), (8, 1, 500), (8, 4, 700), efficiency={}, split=[])
    first, second, _, last = report["parts"]["sweep"]["grid"]
    assert found_in(report_sweeps.rank, report).verdict == "disagree"
    first["exact_match"] = 1.0
    assert found_in(report_sweeps.rank, report).verdict == "disagree"  # the higher rank holds less
    second["exact_match"] = 1.0
    assert found_in(report_sweeps.rank, report).verdict == "agree"
    assert found_in(report_sweeps.load, report).verdict == "agree"
    last["exact_match"] = 1.0
    last["stored_bits"] = 801
    assert found_in(report_sweeps.load, report).verdict == "agree"  # by rank 1, which is full
    third = report["parts"]["sweep"]["grid"][2]
    third["loss"] = last["loss"] = 0.5  # nobody has learnt 8K
    for find in (report_sweeps.rank, report_sweeps.load):
        assert found_in(find, report).why == "training had not converged"
    for entry in report["parts"]["sweep"]["grid"]:
        entry["exact_match"] = 1.0
    for find in (report_sweeps.rank, report_sweeps.load):
        found = found_in(find, report)
        assert (found.verdict, found.why) == ("not measured", "every rank holds every load")
    full = report["parts"]["sweep"]
    full["efficiency"] = {"1": 5.0, "4": 3.0}
    assert found_in(report_sweeps.efficiency, report).why == "the highest rank holds every load"
    both = swept(efficiency={}, split=[{"small": {"exact_match": 1.0}, "large": {"exact_match": 1.0}}])
    assert found_in(report_sweeps.partition, both).why == "both hold everything"


def test_several_sizes_have_to_agree_on_parts() -> None:
    sides = [(0.6, 0.3), (0.8, 0.95), (1.0, 1.0)]
    split: list[Json] = [{"small": {"exact_match": small}, "large": {"exact_match": large}} for small, large in sides]
    found = found_in(report_sweeps.partition, swept(efficiency={}, split=split))
    assert (found.verdict, len(found.figures)) == ("disagree", 6)
    assert found_in(report_sweeps.partition, swept(efficiency={}, split=split[::2])).verdict == "agree"
    hasty = swept((8, 1, 55), (8, 4, 95), efficiency={}, split=split[:1], learnt=False)
    assert found_in(report_sweeps.partition, hasty).why == "training had not converged"


def test_of_several_runs_the_one_with_most_questions_is_told() -> None:
    few, many = recalled("paperqa", GOOD), recalled("paperqa", GOOD | {"lora-top5": 0.9})
    few["settings"]["questions"], many["settings"]["questions"] = 90, 270
    found = report_findings.count({"a.json": few, "b.json": many})
    assert found is not None
    assert (found.file, found.verdict) == ("b.json", "disagree")


def test_text_in_the_prompt_is_judged_on_short_documents_where_there_are_no_long_ones() -> None:
    short, long = recalled("paperqa", GOOD), recalled("quality", GOOD | {"lora-top3": 0.9})
    found = report_findings.context({"a.json": short, "b.json": long})
    assert found is not None
    assert (found.file, found.verdict, found.why) == ("b.json", "disagree", "")
    alone = found_in(report_findings.context, short)
    assert (alone.verdict, alone.why, len(alone.notes)) == ("agree", "short documents", 1)
    passages = found_in(report_findings.context, recalled("paperqa", GOOD | {"hybrid-top3": 0.81}))
    parts = "text helps: agree, the whole text more than passages: undecided"
    assert (passages.verdict, passages.why) == ("undecided", f"short documents; {parts}")
    assert passages.notes[3] == "By their means passages help more than the whole text, against the paper."


def test_mixtures_are_as_good_as_the_best_of_them() -> None:
    report = arms({"qa40": 0.3, "all": 0.1, "summary8+qa40": 0.4, "qa40+original": 0.2, "rewrite4+qa40": 0.1})
    assert found_in(report_findings.mixtures, report).verdict == "agree"


def test_models_are_compared_by_their_size_on_the_same_draw() -> None:
    small = recalled("paperqa", {"lora": 0.2}, model="smollm2-135m")
    large = recalled("paperqa", {"lora": 0.4}, model="Llama-3.1-8B-Instruct")
    found = report_findings.scale({"z.json": small, "a.json": large})
    assert found is not None
    assert (found.file, found.verdict) == ("z.json, a.json", "agree")
    other = large | {"settings": large["settings"] | {"draw": "other"}}
    longer = large | {"settings": large["settings"] | {"training": {"max_seconds": 3600}}}
    for unlike in (other, longer):
        assert report_findings.scale({"a.json": small, "b.json": unlike}) is None
    assert [model_size(name) for name in ("smollm2-135m", "Qwen3-0.6B", "tiny")] == [135, 600, None]


def test_intervals_that_touch_decide_nothing() -> None:
    one, other = Estimate(0.5, (0.4, 0.6)), Estimate(0.7, (0.6, 0.8))
    assert greater(other, one) == greater(one, other) == "undecided"
    assert greater(Estimate(0.7, (0.61, 0.8)), one) == "agree"
    assert greater(one, Estimate(0.7)) == "disagree"


def test_one_document_decides_nothing() -> None:
    assert greater(Estimate(0.7, documents=1), Estimate(0.5, documents=1)) == "undecided"
    assert greater(Estimate(0.7, documents=2), Estimate(0.5, documents=2)) == "agree"
