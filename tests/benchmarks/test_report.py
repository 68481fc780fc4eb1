import json
from pathlib import Path

import pytest

from benchmarks.report import answers, main, read_results, report
from benchmarks.report_questions import LARGE_MODEL, QUESTIONS, READY, Question
from tests.benchmarks.test_report_findings import GOOD, SWEEP, recalled
from tests.benchmarks.test_report_times import timed


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
    assert "lora:oracle 0.900 (0.888 to 0.912); lora 0.500" in text
    assert text.count("Ours: not measured.") == 15 - text.count("Verdict: **")
    assert str(tmp_path) not in text


def test_checks_that_failed_are_named_under_the_result() -> None:
    checks = [
        {"name": "lora.f1>=0.3", "value": 0.2, "bound": ">= 0.3000", "ok": False},
        {"name": "rag.f1>=0.1", "value": 0.2, "bound": ">= 0.1000", "ok": True},
    ]
    results = {"papers.json": recalled("paperqa", GOOD) | {"checks": checks}, "q15.json": timed(900.0) | {"checks": []}}
    text = report(answers(results), results)
    assert "- Failed checks of `papers.json`: `lora.f1>=0.3` is 0.2, not `>= 0.3000`.\n" in text
    assert "rag.f1" not in text
    assert "Failed checks of `q15.json`" not in text


def test_how_to_repeat_is_the_command_of_each_file_and_how_to_answer_the_questions_own() -> None:
    again = timed(300.0) | {"command": "python -m benchmarks.q15 --json --questions 10"}
    results = {"papers.json": recalled("paperqa", GOOD), "a.json": timed(900.0), "b.json": again}
    *_, routed, _, _, _, _, _, latency = report(answers(results), results).split("\n## ")
    served = f"```sh\nloramem serve &\n{READY}\npython -m benchmarks.recall --json --dataset paperqa"
    assert f"To repeat:\n\n{served}\nkill $!; wait\n```\n" in routed
    assert f"To answer it:\n\n{served} --documents 15 --methods routing\nkill $!; wait\n```\n" in routed
    repeat = "# a.json, Some CPU, seed 0\npython -m benchmarks.q15 --json --questions 30\n# b.json, Some CPU, seed 0\n"
    assert f"To repeat:\n\n```sh\n{repeat}python -m benchmarks.q15 --json --questions 10\n```" in latency
    assert "To answer it:\n\n```sh\npython -m benchmarks.q15 --json\n```" in latency
    text = report(answers({}), {})
    assert ("To repeat:" in text, text.count("To answer it:")) == (False, 15)
    swept = {"sweep.json": SWEEP | {"command": QUESTIONS[0].command}}
    rank = report(answers(swept), swept).split("\n## ")[1]
    assert ("To repeat:" in rank, "To answer it:" in rank) == (True, False)  # one command does both


def test_why_there_is_no_verdict_stands_beside_it() -> None:
    results = {"squad.json": recalled("squad", GOOD, routed_right=0.97)}
    text = report(answers(results), results)
    assert "| Q10 | Can merging make up for wrong routing? | not measured (97 % routed right) | squad.json |" in text
    assert "Verdict: **not measured** (97 % routed right)." in text


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: f"Q{question.number}")
def test_a_command_that_asks_a_server_has_one_at_a_time(question: Question) -> None:
    for lines in (question.repeat(question.command).splitlines(), question.large_command.splitlines()):
        starts = [number for number, line in enumerate(lines) if line.endswith("loramem serve &")]
        assert len(starts) == (1 if question.on_server else 0)
        if starts:
            assert lines[starts[0] + 1] == READY
            assert lines[-1] == "kill $!; wait"


def test_the_writer_is_told_to_the_server_that_has_the_large_model() -> None:
    start = QUESTIONS[6].large_command.splitlines()[0]
    told = f"LORAMEM_MODEL={LARGE_MODEL} LORAMEM_WRITER_URL=URL LORAMEM_WRITER_MODEL=NAME"
    assert start == f"{told} loramem serve &"


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


def test_the_questions_are_the_papers_fifteen() -> None:
    assert [question.number for question in QUESTIONS] == list(range(1, 16))
