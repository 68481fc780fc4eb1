"""The runner of the small runs, with processes that only say what a benchmark says, and a server that only answers."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import smoke
from benchmarks.passages import DATA
from benchmarks.smoke import BENCHMARKS, LIMIT_S, REPORT, Outcome, checks_of, over_a_minute
from tests.benchmarks.fake_benchmarks import OK, REPORTED, SERVER, SLOW, Fakes, Json, fakes, is_running, reason, states

__all__ = ["fakes"]

FOLDER = Path(smoke.__file__).parent


# the list


def options_of(module: Path) -> dict[str, ast.Call]:
    """Options that the module's parser takes, however it names `add_argument`."""
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    named = [(call.args[0], call) for call in calls if call.args]
    return {
        first.value: call
        for first, call in named
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.startswith("--")
    }


def test_every_benchmark_with_a_smoke_run_is_listed_with_what_it_needs() -> None:
    options = {file.stem: options_of(file) for file in sorted(FOLDER.glob("*.py"))}
    small = {name: found for name, found in options.items() if "--smoke" in found}
    listed = {one.name: one for one in BENCHMARKS if one is not REPORT}
    assert set(small) == set(listed), "list every benchmark that has --smoke in benchmarks/smoke.py, and no other"
    for name, found in small.items():
        assert listed[name].server == ("--url" in found), name
        needs_namespace = "--namespace" in found and "required=True" in ast.unparse(found["--namespace"])
        assert listed[name].learnt == needs_namespace, name
        assert "--json" in found, name
    assert len(listed) == len(BENCHMARKS) - 1
    assert BENCHMARKS[-1] is REPORT


def test_options_are_found_under_either_name(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('add = parser.add_argument\nadd("--smoke")\nparser.add_argument("--url")\nx = ["--json"]\n')
    assert set(options_of(file)) == {"--smoke", "--url"}


# runs


def test_all_run_one_after_another_and_the_report_last(fakes: Fakes) -> None:
    fakes.add("alpha")
    fakes.add("beta", "a table", OK)
    status, report, lines = fakes.run()
    assert (status, states(report)) == (0, {"alpha": "ok", "beta": "ok", "report": "ok"})
    assert [one["name"] for one in fakes.ran] == ["alpha", "beta", "report"]
    assert [one["argv"] for one in fakes.ran[:2]] == [["--json", "--smoke"]] * 2
    assert [line.split()[0] for line in lines] == ["alpha", "beta", "report"]
    assert all(line.endswith("s  ok") for line in lines)
    assert [one["name"] for one in report["checks"]] == [
        "alpha: ok",
        "beta: ok",
        "report: ok",
        "benchmarks that ran",
        "seconds, all together",
    ]
    assert report["command"] == "python -m benchmarks.smoke --json"
    assert {"machine", "versions", "seed", "seconds"} <= report.keys()
    assert fakes.served is None


def test_only_those_named_run_in_the_order_of_the_list(fakes: Fakes) -> None:
    for name in ("alpha", "beta", "gamma"):
        fakes.add(name)
    status, report, _ = fakes.run("--only", "gamma,alpha")
    assert (status, list(states(report))) == (0, ["alpha", "gamma"])
    assert report["command"] == "python -m benchmarks.smoke --json --only alpha,gamma"


def test_a_name_that_is_none_is_refused_with_those_that_are(fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.add("alpha")
    with pytest.raises(SystemExit) as refused:
        fakes.run("--only", "alpha,omega")
    assert refused.value.code == 2
    assert "'omega': there are alpha, report" in capsys.readouterr().err
    assert fakes.ran == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"lines": (SLOW,), "status": 1}, "speed: 0.5 (>= 1)"),
        ({"lines": (SLOW,)}, "speed: 0.5 (>= 1)"),
        ({"lines": ("",), "status": 1, "error": "Traceback:\n\nValueError: no\n"}, "exit status 1: ValueError: no"),
        ({"lines": (OK,), "status": 3, "error": "10%\r20%\rgone"}, "exit status 3: gone"),
        ({"lines": (OK, "and more")}, "no JSON object"),
        ({"lines": ("[1]",)}, "no JSON object"),
        ({"lines": ('{"f1": NaN, "checks": [{"ok": true}]}',)}, "no JSON object of numbers"),
        ({"lines": ({"checks": []},)}, "it checks nothing"),
        ({"lines": ({"f1": 1.0},)}, "it checks nothing"),
    ],
)
def test_what_failed_is_said_and_the_others_run(fakes: Fakes, how: Json, said: str) -> None:
    fakes.add("bad", *how.pop("lines"), **how)
    fakes.add("good")
    status, report, lines = fakes.run()
    assert (status, states(report)) == (1, {"bad": "failed", "good": "ok", "report": "ok"})
    assert said in reason(report, "bad")
    assert said in lines[0]
    assert [one["name"] for one in report["checks"] if not one["ok"]] == ["bad: ok"]


def test_a_run_that_does_not_end_is_ended(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.add("endless")
    fakes.write("endless", "import time\ntime.sleep(600)")
    monkeypatch.setattr(smoke, "LIMIT_S", 0.5)
    status, report, _ = fakes.run("--only", "endless")
    assert (status, reason(report, "endless")) == (1, "not ended after 0.5 s")
    assert [one["name"] for one in report["checks"] if not one["ok"]] == ["endless: ok", "seconds, all together"]


def test_all_together_have_a_limit() -> None:
    (*_, within), (*_, beyond) = (checks_of([Outcome("alpha", 1.0, "ok")], each) for each in (LIMIT_S, LIMIT_S + 0.1))
    assert (within["ok"], beyond["ok"]) == (True, False)


def test_those_over_a_minute_are_named_and_fail_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {one.name: one for one in BENCHMARKS}
    assert "several servers" in listed["q15"].slow
    outcomes = [Outcome("merge", 60.0, "ok"), Outcome("recall", 60.1, "ok"), Outcome("q15", 90.0, "ok")]
    assert over_a_minute(outcomes) == [
        {"name": "recall", "seconds": 60.1, "known": ""},
        {"name": "q15", "seconds": 90.0, "known": listed["q15"].slow},
    ]
    assert all(one["ok"] for one in checks_of(outcomes, 210.1))


def test_a_report_names_those_over_a_minute(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.add("alpha")
    assert fakes.run()[1]["over_a_minute"] == []
    monkeypatch.setattr(smoke, "EACH_S", -1.0)
    status, report, _ = fakes.run()
    assert (status, [one["name"] for one in report["over_a_minute"]]) == (0, ["alpha", "report"])


# what is missing


@pytest.mark.parametrize(
    "error",
    [
        "capacity: error: no benchmark data found: set LORAMEM_BENCH_DATA",
        f"FileNotFoundError: [Errno 2] No such file or directory: '{DATA.resolve()}/paper/paperqa/paperQA.json'",
        "FileNotFoundError: phonebook holds no sectors of the phone book (phonebook_qa_128K_sector_*.csv)",
        "ModuleNotFoundError: No module named 'matplotlib'",
    ],
)
def test_a_run_that_says_what_it_misses_is_skipped_with_the_reason(fakes: Fakes, error: str) -> None:
    fakes.add("alpha", "", status=2, error=f"usage: ...\n{error}\n")
    fakes.add("beta")
    status, report, lines = fakes.run()
    assert (status, states(report)) == (0, {"alpha": "skipped", "beta": "ok", "report": "ok"})
    assert reason(report, "alpha") == error
    assert f"skipped; {error}" in lines[0]
    assert "alpha: ok" not in {one["name"] for one in report["checks"]}


@pytest.mark.parametrize(
    "error",
    [
        "FileNotFoundError: [Errno 2] No such file or directory: 'elsewhere/paperQA.json'",
        "ModuleNotFoundError: No module named 'benchmarks.gone'",
        "no benchmark data found\nValueError: something else",
        "",
    ],
)
def test_another_error_is_none_of_those(fakes: Fakes, error: str) -> None:
    fakes.add("alpha", "", status=1, error=error)
    status, report, _ = fakes.run()
    assert (status, states(report)["alpha"]) == (1, "failed")


def test_a_report_that_names_data_and_failed_is_not_skipped(fakes: Fakes) -> None:
    fakes.add("alpha", SLOW, status=1, error="no benchmark data found")
    assert states(fakes.run()[1])["alpha"] == "failed"


def test_skipping_everything_is_no_success(fakes: Fakes) -> None:
    fakes.add("alpha", "", status=2, error="no benchmark data found")
    status, report, _ = fakes.run("--only", "alpha")
    assert (status, states(report)) == (1, {"alpha": "skipped"})


def test_parts_that_were_left_out_are_named(fakes: Fakes) -> None:
    fakes.add("alpha", OK | {"sft": None, "sft_reason": "No module named 'trl'", "other": 1.0, "other_reason": "none"})
    status, report, lines = fakes.run()
    assert status == 0
    assert report["benchmarks"][0]["without"] == ["sft: No module named 'trl'"]
    assert lines[0].endswith("ok; without sft: No module named 'trl'")


@pytest.mark.parametrize(
    ("script", "state", "said"),
    [
        ("pass", "failed", "it wrote nothing"),
        (REPORTED.replace("# Report", ""), "failed", "it wrote nothing"),
        ('sys.exit("report: x.json is not JSON")', "failed", "x.json is not JSON"),
        ("raise ModuleNotFoundError(\"No module named 'matplotlib'\")", "skipped", "matplotlib"),
    ],
)
def test_the_report_is_made_anew(fakes: Fakes, script: str, state: str, said: str) -> None:
    fakes.add("alpha")
    fakes.write("report", script)
    status, report, _ = fakes.run()
    assert (status, states(report)["report"]) == (int(state == "failed"), state)
    assert said in reason(report, "report")


def test_the_report_leaves_the_one_that_is_there(fakes: Fakes) -> None:
    fakes.run()
    (ran,) = fakes.ran
    assert ran["argv"][0] == "--out"
    assert not Path(ran["argv"][1]).is_relative_to(FOLDER)
    assert not Path(ran["argv"][1]).exists()  # deleted with all that was temporary


# the server


def test_those_that_ask_a_server_get_one_of_their_own_which_ends(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for a server in use leads to its data, and is not taken over; what says how to answer is."""
    for name, value in {"DATABASE_URL": "sqlite:////in-use.db", "REDIS_URL": "redis://in-use", "MODEL": "mine"}.items():
        monkeypatch.setenv(f"LORAMEM_{name}", value)
    monkeypatch.setenv("LORAMEM_API_KEYS", '["key"]')
    monkeypatch.setenv("LORAMEM_HOST", "0.0.0.0")
    fakes.add("asking", server=True)
    fakes.add("alone")
    status, report, _ = fakes.run()
    assert (status, list(states(report))) == (0, ["alone", "asking", "report"])
    assert [(one["name"], one["server"]) for one in fakes.ran] == [("alone", False), ("asking", True), ("report", True)]
    assert fakes.served is not None
    settings = fakes.served["settings"]
    assert fakes.ran[1]["argv"] == [
        "--json", "--smoke", "--url", f"http://127.0.0.1:{settings['LORAMEM_PORT']}",
    ]  # fmt: skip
    assert fakes.served["argv"] == ["serve"]
    assert (settings["LORAMEM_DATABASE_URL"], settings["LORAMEM_REDIS_URL"]) == ("", "")
    assert (settings["LORAMEM_API_KEYS"], settings["LORAMEM_HOST"]) == ("[]", "127.0.0.1")
    assert settings["LORAMEM_MODEL"] == "mine"
    for one in fakes.ran:
        assert one["settings"]["LORAMEM_HOME"] == settings["LORAMEM_HOME"]
        assert one["settings"]["LORAMEM_BENCH_DATA"] == str(DATA.resolve())
    assert not Path(settings["LORAMEM_HOME"]).exists()
    assert not is_running(fakes.served["pid"])


def test_a_server_that_is_named_is_asked_and_none_started(fakes: Fakes) -> None:
    fakes.add("asking", server=True)
    fakes.add("alone")
    status, _, _ = fakes.run("--url", "http://127.0.0.1:9")
    assert status == 0
    assert fakes.served is None
    assert fakes.ran[0]["argv"] == ["--json", "--smoke"]
    assert fakes.ran[1]["argv"] == ["--json", "--smoke", "--url", "http://127.0.0.1:9"]


def test_the_server_ends_after_an_error_of_ours_too(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.add("asking", server=True)

    def interrupted(*_: object) -> Outcome:
        assert fakes.served is not None
        assert is_running(fakes.served["pid"])
        raise KeyboardInterrupt

    monkeypatch.setattr(smoke, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fakes.run()
    assert fakes.served is not None
    assert not is_running(fakes.served["pid"])


@pytest.mark.parametrize(
    ("serve", "ready_s", "said"),
    [
        (lambda folder: (sys.executable, "-c", "import sys; sys.exit('LORAMEM_MODEL names nothing')"), 60, "nothing"),
        (lambda folder: (sys.executable, "-c", "import time; time.sleep(600)"), 1, "not ready after 1 s"),
        (lambda folder: (str(folder / "loramem"), "serve"), 60, "cannot be started"),
    ],
)
def test_without_the_server_those_that_need_it_fail_and_the_others_run(
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    serve: Callable[[Path], tuple[str, ...]],
    ready_s: float,
    said: str,
) -> None:
    monkeypatch.setattr(smoke, "SERVE", serve(fakes.folder))
    monkeypatch.setattr(smoke, "READY_S", ready_s)
    fakes.add("asking", server=True)
    fakes.add("reading", server=True, learnt=True)
    fakes.add("alone")
    status, report, _ = fakes.run()
    assert (status, states(report)) == (
        1, {"alone": "ok", "asking": "failed", "reading": "failed", "report": "ok"},
    )  # fmt: skip
    assert reason(report, "asking") == reason(report, "reading") == "the server did not start"
    assert said in fakes.said


def test_a_server_that_ignores_the_signal_is_killed(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "STOP_S", 0.5)
    stubborn = SERVER.replace("HOME = ", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nHOME = ")
    (fakes.folder / "serve.py").write_text(stubborn)
    fakes.add("asking", server=True)
    assert fakes.run()[0] == 0
    assert fakes.served is not None
    assert not is_running(fakes.served["pid"])


# documents that were learnt before


def test_documents_are_learnt_for_those_that_ask_them_and_forgotten(fakes: Fakes) -> None:
    fakes.add("recall", server=True)
    fakes.add("hybrid", server=True, learnt=True)
    fakes.add("lifts", server=True, learnt=True)
    status, report, _ = fakes.run("--only", "hybrid,lifts")
    assert (status, states(report)) == (0, {"hybrid": "ok", "lifts": "ok"})
    learning, *asking = fakes.ran
    assert learning["name"] == "recall"
    assert {"--keep", "--namespace", "--max-seconds"} <= set(learning["argv"])
    assert "--smoke" not in learning["argv"]
    namespace = learning["argv"][learning["argv"].index("--namespace") + 1]
    for one in asking:
        assert one["argv"][:2] == ["--json", "--smoke"]
        assert one["argv"][one["argv"].index("--namespace") + 1] == namespace
        assert one["argv"][-4:] == list(smoke.DRAW)
    assert fakes.served is not None
    assert fakes.served["deleted"] == ["/documents/doc_1", "/documents/doc_2"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (f"recall: error: [Errno 2] No such file or directory: '{DATA.resolve()}/squad11/dev.json'", "skipped"),
        ("NotLearnt: job job_1 ended otherwise", "failed"),
    ],
)
def test_documents_that_were_not_learnt_are_the_reason(fakes: Fakes, error: str, state: str) -> None:
    fakes.add("recall", "", status=2, error=error, server=True)
    fakes.add("hybrid", server=True, learnt=True)
    _, report, _ = fakes.run("--only", "hybrid")
    assert states(report) == {"hybrid": state}
    assert "learning documents for it" in reason(report, "hybrid")
    assert error in reason(report, "hybrid")
    assert [one["name"] for one in fakes.ran] == ["recall"]


def test_a_server_that_is_gone_keeps_nothing_from_being_reported(fakes: Fakes) -> None:
    fakes.add("recall", server=True)
    fakes.add("hybrid", SLOW, status=1, server=True, learnt=True)
    status, report, _ = fakes.run("--url", "http://127.0.0.1:9", "--only", "hybrid,report")
    assert (status, states(report)) == (1, {"hybrid": "failed", "report": "ok"})
    assert "documents may be left in namespace smoke-" in fakes.said
