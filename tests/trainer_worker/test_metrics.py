"""What Prometheus reads of a worker: waits, ends, phases, steps, exams, over HTTP on a port of its own."""

import signal
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loramem.base_model import BaseModel
from loramem.errors import SettingsError
from loramem.queue import Claim
from loramem.records import ExamResult, Phase, Progress
from trainer_worker import __main__ as main
from trainer_worker.metrics import Metrics

CLAIM = Claim("job_a", "build", "doc_a", 1, 1, 1, "w", waited_s=4.0)
EXAM = ExamResult(questions=4, recall=0.75, base_recall=0.0, loss=1.0, weak=False)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, sample: str, **labels: str) -> float:
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    found = [s.value for family in families for s in family.samples if s.name == sample and s.labels == labels]
    assert len(found) == 1, sample
    return found[0]


def train(step: int, loss: float | None = 2.0) -> Progress:
    return Progress(phase="train", step=step, total_steps=9, loss=loss)


def test_a_job_shows_its_wait_its_phases_and_its_steps(metrics: Metrics) -> None:
    with metrics.watch(CLAIM) as tell:
        assert value(metrics, "loramem_worker_busy") == 1
        tell(Progress(phase="chunk"))
        for progress in (train(1, 3.0), train(2), train(2), train(3, 1.5)):
            tell(progress)
        tell(Progress(phase="examine"))
    assert value(metrics, "loramem_worker_busy") == 0
    assert value(metrics, "loramem_job_wait_seconds_sum") == 4
    for phase in ("chunk", "train", "examine"):
        assert value(metrics, "loramem_job_phase_seconds_count", phase=phase) == 1
    assert value(metrics, "loramem_train_step_seconds_count") == 2
    assert value(metrics, "loramem_train_loss") == 1.5


def test_a_job_that_fails_still_ends_its_phase(metrics: Metrics) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_in(metrics, "synthesize")
    assert value(metrics, "loramem_job_phase_seconds_count", phase="synthesize") == 1
    assert value(metrics, "loramem_worker_busy") == 0


def fail_in(metrics: Metrics, phase: Phase) -> None:
    with metrics.watch(CLAIM) as tell:
        tell(Progress(phase=phase))
        raise ZeroDivisionError


def test_ends_are_counted_by_kind_and_outcome_and_lost_leases_apart(metrics: Metrics) -> None:
    for outcome in ("succeeded", "succeeded", "lease_lost"):
        metrics.observe_end(CLAIM, outcome, 30.0)
    assert value(metrics, "loramem_job_duration_seconds_sum", kind="build", outcome="succeeded") == 60
    assert value(metrics, "loramem_job_attempts_total", outcome="lease_lost") == 1
    assert value(metrics, "loramem_job_leases_lost_total") == 1


@pytest.mark.parametrize(("hours", "below", "above"), [(7, "28800.0", "14400.0"), (30, "172800.0", "86400.0")])
def test_a_job_of_many_hours_has_a_bucket(metrics: Metrics, hours: int, below: str, above: str) -> None:
    metrics.observe_end(CLAIM, "succeeded", hours * 3600)
    bucket, labels = "loramem_job_duration_seconds_bucket", {"kind": "build", "outcome": "succeeded"}
    assert value(metrics, bucket, le=below, **labels) == 1
    assert value(metrics, bucket, le=above, **labels) == 0


def test_what_was_learnt_is_counted_and_examined_only_with_questions(metrics: Metrics) -> None:
    metrics.observe_exam({"tokens": 500, "variant": "lora"}, EXAM)
    metrics.observe_exam({"tokens": 100}, EXAM.model_copy(update={"questions": 0}))
    assert value(metrics, "loramem_train_tokens_total") == 600
    assert value(metrics, "loramem_exam_recall_count") == 1
    assert value(metrics, "loramem_exam_recall_bucket", le="0.7") == 0
    assert value(metrics, "loramem_exam_recall_bucket", le="0.8") == 1


def test_scrapes_are_answered_with_the_processs_own_figures(metrics: Metrics) -> None:
    port = free_port()
    stop = metrics.serve("127.0.0.1", port)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    finally:
        stop()
    assert "loramem_job_wait_seconds_count 0.0" in text
    assert "process_resident_memory_bytes" in text
    assert "loramem_build_info{" in text


def test_a_worker_answers_no_scrape_before_its_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    def load(*_: object) -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 10)
        raise MemoryError

    monkeypatch.setenv("LORAMEM_HOME", str(tmp_path))
    monkeypatch.setenv("LORAMEM_WORKER_METRICS_PORT", str(port))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # the tests' own process keeps its handlers
    monkeypatch.setattr(main, "configure", lambda process, level: None)
    monkeypatch.setattr(main, "resolve_base_model", lambda settings: BaseModel(Path(), "tiny", ""))
    monkeypatch.setattr(main, "make_builder", load)
    with pytest.raises(MemoryError):
        main.main()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_port_that_is_taken_is_a_wrong_setting(metrics: Metrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port}.*LORAMEM_WORKER_METRICS_PORT"):
            metrics.serve("127.0.0.1", port)
