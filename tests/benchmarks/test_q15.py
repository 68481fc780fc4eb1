import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import q15, q15_bench, q15_server
from benchmarks.adapters import Archive
from benchmarks.q15 import main, run_reference
from benchmarks.q15_bench import Bench, pools
from benchmarks.q15_plan import (
    BASE,
    ICL,
    METHODS,
    PER_QUESTION,
    PRELOADED,
    RAG,
    Asked,
    Document,
    Measured,
    ReferencePlan,
    ReferenceResult,
)
from benchmarks.q15_server import CHUNKS, ICL_CACHED, WHOLE, Answered, Learnt, Questioner, Served
from benchmarks.smoke import NoServer
from loramem.base_model import BaseModel
from loramem.settings import Settings
from loramem.store import CONFIG, WEIGHTS
from tests.trainer_worker.tiny import save_tiny_model

Json = dict[str, Any]
CHUNK_TOKENS = "64"
"""Words, to the tiny tokenizer."""
TEXT = " ".join(["who built the mill of larch ?"] * 40)
OUTPUT = {method: 3 + number for number, method in enumerate((*METHODS, ICL_CACHED))}


def asked(method: str) -> Asked:
    stages = {"prefill": 60.0, "decode": 40.0} if method != ICL else {"prefill": 960.0, "decode": 40.0}
    wall = sum(stages.values()) + (20 if method == RAG else 0)
    return Asked(stages_ms=stages, wall_ms=wall, prompt_tokens=30, output_tokens=OUTPUT[method])


class Fakes:
    """Servers and the reference as `q15` uses them; `environments` and `plans` are what it gave them."""

    def __init__(self, questions: Sequence[str], adapters: int) -> None:
        self.questions, self.count = questions, adapters
        self.environments: list[Mapping[str, str]] = []
        self.running = 0
        self.plans: list[ReferencePlan] = []
        self.training: Mapping[str, Any] = {}
        self.files: list[list[str]] = []

    @contextmanager
    def server_at(self, url: None, home: Path, environment: Mapping[str, str]) -> Iterator[str]:
        self.environments.append(environment)
        self.running += 1
        yield "http://test"
        self.running -= 1

    def learn(self, url: str, document: Document, training: Mapping[str, Any]) -> Learnt:
        self.training = training
        archive = Archive({CONFIG: b"{}", WEIGHTS: b"weights"})
        learn_s = {CHUNKS: 90.0, WHOLE: 10.0}
        return Learnt({CHUNKS: "a", WHOLE: "b"}, 2.0, learn_s, [archive] * self.count, archive, 1 << 30)

    def measure(
        self, questioner: Questioner, methods: Sequence[str], document: Document, *costs: float, seed: int = 0
    ) -> Served:
        assert self.running == 1
        answers = {one: [Answered(asked(one), frozenset(), None, 30 + 6 * n) for n in range(3)] for one in methods}
        found = {one: Measured(setup_s={"s": 1.0}, asked=tuple(a.asked for a in answers[one])) for one in methods}
        return Served(found, answers, self.count)

    def run_reference(self, plan: ReferencePlan, bench: Bench) -> ReferenceResult:
        assert not self.running  # they would share the cores
        self.plans.append(plan)
        self.files.append([file.name for folder in (*plan.adapters, plan.whole) for file in Path(folder).iterdir()])
        methods = {}
        for method in METHODS:
            one = asked(method)
            slow = one.model_copy(update={"wall_ms": 600.0}) if method == PRELOADED else one
            methods[method] = Measured(setup_s={"model_loading": 1.0}, asked=(slow,) * 3)
        return ReferenceResult(dtype="float32", rag_chunks=3, methods=methods)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    questions = ["who built the mill ?", "who built the roof ?", "who is jon ask ?", "what is orm ?"]
    data = {"title": "Mill", "text": TEXT, "questions": [{"question": one, "answers": []} for one in questions]}
    file = tmp_path / "data" / q15.FILE
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(data))
    fakes = Fakes(questions, adapters=5)
    monkeypatch.setattr(q15, "DATA", tmp_path / "data")
    monkeypatch.setattr(q15_bench, "server_at", fakes.server_at)
    monkeypatch.setattr(q15_server, "learn", fakes.learn)
    monkeypatch.setattr(q15_server, "measure", fakes.measure)
    monkeypatch.setattr(q15, "run_reference", fakes.run_reference)
    return fakes


def arguments(model: Path, *more: str) -> list[str]:
    given = ["--json", "--device", "cpu", "--model", str(model), "--chunk-tokens", CHUNK_TOKENS]
    return [*given, "--questions", "3", *more]


def test_a_report_says_what_was_measured_and_names_no_folder(
    fakes: Fakes, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "q15.json"
    assert main(arguments(model, "--out", str(out), "--max-tokens", "20")) == 0
    said = capsys.readouterr().out
    report = json.loads(said)
    assert report == json.loads(out.read_text())
    assert {file.suffix for file in out.parent.iterdir()} == {".json", ".png", ".svg"}
    assert str(model.parent) not in said
    assert str(tmp_path) not in said
    assert report["command"] == (
        f"python -m benchmarks.q15 --json --model {model.name} --questions 3 --max-tokens 20 "
        "--formats original --max-seconds 5 --chunk-tokens 64 --device cpu --precision auto --seed 0"
    )
    assert list(report["loramem"]) == [*METHODS, ICL_CACHED]
    assert list(report["reference"]) == list(METHODS)
    assert list(report["loramem_again"]) == [BASE]
    assert report["learning_s"] == {CHUNKS: 90, WHOLE: 10}
    settings = report["settings"]
    assert (settings["model"], settings["document"], settings["questions"]) == (model.name, "Mill", 3)
    assert (settings["adapters"], settings["adapters_in_memory"], settings["chunk_tokens"]) == (5, 5, 64)
    assert settings["pools"] == dict.fromkeys(("source_pool_bytes", "device_pool_bytes"), 2 << 30)
    assert settings["reference"] == {"dtype": "float32", "rag_chunks": 3}
    assert all(one["ok"] for one in report["checks"])
    assert len(report["checks"]) == 6


def test_adapters_can_be_trained_as_a_server_does(
    fakes: Fakes, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(model, "--formats", "qa+original", "--max-seconds", "110"))
    assert fakes.training == {"formats": ["qa", "original"], "max_seconds": 110}
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["formats"] == ["qa", "original"]
    assert " --formats qa+original --max-seconds 110 " in report["command"]


def test_what_icl_did_not_read_is_said(fakes: Fakes, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(model))
    report = json.loads(capsys.readouterr().out)
    assert report["icl"] == {
        "document_tokens": 280,
        "read_tokens": {"least": 7, "most": 10},  # of 30, 36 and 42 characters
        "read_share": round((7 + 9 + 10) / 3 / 280, 4),
        "whole": False,
    }


def test_servers_have_pools_of_their_own_and_see_no_gpu(
    fakes: Fakes, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAMEM_DATABASE_URL", "postgresql://elsewhere")
    main(arguments(model, "--max-model-len", "4096"))
    keys = ("LORAMEM_SOURCE_POOL_BYTES", "LORAMEM_DEVICE_POOL_BYTES")
    given = [tuple(environment.get(key) for key in keys) for environment in fakes.environments]
    assert given == [(None, None), (str(2 << 30),) * 2, ("1", "1")]
    for environment in fakes.environments:
        assert environment["LORAMEM_MODEL"] == str(model)
        assert environment["LORAMEM_MAX_MODEL_LEN"] == "4096"
        assert environment["LORAMEM_CHUNK_OVERLAP_TOKENS"] == "5"
        assert environment["LORAMEM_DATABASE_URL"] == ""
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert len({environment["LORAMEM_HOME"] for environment in fakes.environments}) == 1


def test_the_reference_gets_loramems_lengths_chunks_and_adapters(fakes: Fakes, model: Path) -> None:
    main(arguments(model))
    (plan,) = fakes.plans
    assert [one.question for one in plan.questions] == fakes.questions[:3]
    assert [one.read for one in plan.questions] == [30, 36, 42]
    assert [one.mark for one in plan.questions] == [q15_server.mark(number) for number in (1, 2, 3)]
    assert plan.questions[0].tokens == {method: OUTPUT[method] for method in METHODS}
    assert plan.warm_up.tokens[PER_QUESTION] == 32
    assert len(plan.chunks) == len(plan.adapters) == 5
    assert plan.chunks[0] == TEXT[: len(plan.chunks[0])]
    assert TEXT.endswith(plan.chunks[-1])
    assert sorted(fakes.files[0]) == sorted([CONFIG, WEIGHTS] * 6)


def test_adapters_of_other_chunks_end_the_run(fakes: Fakes, model: Path) -> None:
    fakes.count = 4
    with pytest.raises(SystemExit, match="4 adapters of 5 chunks"):
        main(arguments(model))


def test_a_failed_check_is_the_exit_status(
    fakes: Fakes, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.q15_report.REFERENCE_BOUND", 7.0)
    assert main(arguments(model)) == 1
    failed = [one for one in json.loads(capsys.readouterr().out)["checks"] if not one["ok"]]
    assert [(one["value"], one["bound"]) for one in failed] == [(6, ">= 7")]


def test_a_smoke_run_needs_no_data(
    fakes: Fakes, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(q15, "DATA", tmp_path / "nowhere")
    for module in (q15, q15_bench):
        monkeypatch.setattr(module, "chunks_of", lambda text, bench: ["a"] * 5)
    assert main([*arguments(model), "--smoke"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in report["checks"]] == [
        "loramem: questions answered",
        "reference: questions answered",
    ]
    assert report["settings"]["questions"] == 3
    assert report["settings"]["max_tokens"] == 8


def test_a_dummy_is_built_once_and_used_everywhere(
    fakes: Fakes, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(q15, "resolve_base_model", lambda settings: BaseModel(Path(found(settings)), "name", "f"))

    def found(settings: Settings) -> str:
        return str(model) if settings.model == "embedded" else settings.model

    kept = tmp_path / "kept"
    given = ["--json", "--device", "cpu", "--dummy-weights", "tiny", "--model-dir", str(kept), "--chunk-tokens", "64"]
    assert main([*given, "--questions", "3"]) == 0
    assert (kept / "config.json").is_file()
    assert {environment["LORAMEM_MODEL"] for environment in fakes.environments} == {str(kept)}
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["model"] == "dummy tiny"
    assert "--dummy-weights tiny" in report["command"]


def test_a_pool_is_never_smaller_than_it_is_set() -> None:
    settings = Settings(source_pool_bytes=1000, device_pool_bytes=10)
    assert pools(settings, 100) == {"source_pool_bytes": 1000, "device_pool_bytes": 200}


def test_a_reference_that_fails_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Plan:
        def model_dump_json(self) -> str:
            return "{}"

    plan: Any = Plan()
    with pytest.raises(SystemExit, match="the reference ended with exit status 1"):
        run_reference(plan, Bench(tmp_path, {}, "cpu"))
    assert "Field required" in capfd.readouterr().err


def test_a_server_that_does_not_start_is_said(fakes: Fakes, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NoServer("the server was not ready after 300 s")

    monkeypatch.setattr(q15_bench, "server_at", refuse)
    with pytest.raises(SystemExit, match=r"benchmarks.q15: the server was not ready"):
        main(arguments(model))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "a", "--dummy-weights", "tiny"], "name two models"),
        (["--model-dir", "a"], "is for --dummy-weights"),
        (["--device", "cuda"], "there is no GPU"),
        (["--questions", "0"], "must be 1 or more"),
        (["--dummy-weights", "huge"], "invalid choice"),
        (["--formats", "qa+songs"], "--formats: String should match pattern"),
        (["--max-seconds", "0"], "must be above 0, not 0"),
        ([], "no benchmark data found"),
    ],
)
def test_wrong_options_are_said(
    given: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(q15, "DATA", tmp_path)
    monkeypatch.setattr(q15, "_has_gpu", lambda: False)
    with pytest.raises(SystemExit):
        main(given)
    assert said in capsys.readouterr().err
