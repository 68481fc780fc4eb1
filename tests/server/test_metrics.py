"""What Prometheus reads: every observation arrives, labels come from closed sets, gauges are the database's."""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from loramem import __version__
from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.errors import EngineUnavailable, NotFound
from loramem.queue import JobQueue
from loramem.records import AskedMode, MergeMethod, Mode, Recipe, Source
from loramem.settings import Settings
from loramem.tables import Job, JobState, Namespace
from loramem.vectors import VectorIndex
from server.ask import Choice, Confidence, Decision, Done, Event, Prepared, Routed, RoutedAdapter, Selection, Token
from server.engine.engine import EngineAdapter
from server.gauges import Process, Stores
from server.metrics import STAGES, Metrics, Outcome
from server.slots import Slots
from tests.rows import add_adapters, add_document, serve
from tests.server.scripted_engine import ScriptedEngine

TIMES = {
    "embed": 10.0,
    "search": 2.0,
    "route": 0.7,
    "merge": 30.0,
    "select": 50.0,
    "queue": 1.0,
    "prefill": 20.0,
    "decode": 400.0,
    "ttft": 60.0,
}
STORES = ("adapters", "cache", "database", "jobs")
DONE = Done("stop", 50, 7, {**TIMES, "total": 500.0})


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{shutil.copy(migrated, tmp_path / 'loramem.db')}")
    yield opened
    opened.close()


@pytest.fixture
def queue(database: Database) -> JobQueue:
    return JobQueue(database, PollingDoorbell(0.1), Settings())


@pytest.fixture
def index(database: Database, tmp_path: Path) -> VectorIndex:
    return VectorIndex(database, dim=4, embedder_name="test", snapshot_dir=tmp_path / "cache" / "index")


@pytest.fixture
def metrics(queue: JobQueue, database: Database, index: VectorIndex, tmp_path: Path) -> Metrics:
    made = Metrics()
    made.registry.register(Stores(queue, database, index, Settings(home=tmp_path)))
    made.registry.register(Process(ScriptedEngine(None), Slots(lambda: 1)))
    return made


def asked(metrics: Metrics, mode: str, *events: Event) -> None:
    with metrics.query(mode) as noted:
        for event in events:
            noted.see(event)


TIERS = {
    "disk": {"bytes": 100, "entries": 4, "hits": 5, "misses": 6, "evictions": 0},
    "host": {"bytes": 30, "entries": 1, "hits": 2, "misses": 3, "evictions": 9},
}


def scraped(metrics: Metrics) -> dict[str, Metric]:
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    return {name: family for name, family in families.items() if name.startswith("loramem_")}


def value(metrics: Metrics, family: str, sample: str, **labels: str) -> float:
    found = [s.value for s in scraped(metrics)[family].samples if s.name == sample and s.labels == labels]
    assert len(found) == 1, scraped(metrics)[family].samples
    return found[0]


def routed(method: MergeMethod | None = None, *, hit: bool = False, score: float = 0.62) -> Routed:
    adapter = RoutedAdapter("ada_a", "0" * 64, 16, "doc_a", "title", 0, score, 1.0)
    source = Source(adapter_id="ada_a", sha256="0" * 64, weight=1.0)
    other = Source(adapter_id="ada_b", sha256="0" * 64, weight=1.0)
    recipe = Recipe.of(method or "linear", [source, other] if method else [source])
    prepared = Prepared(EngineAdapter("a", 1, "p"), recipe, method is not None, hit, 0.03, TIERS)
    return Routed(Decision("lora", Choice("confident", 1, 0.5, "it leads", score)), (adapter,), (prepared,))


def counted(metrics: Metrics, name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and number of what happened at least once."""
    counts = (sample for sample in scraped(metrics)[name].samples if sample.name.endswith(("_count", "_total")))
    return [(sample.labels, sample.value) for sample in counts if sample.value]


def outcomes(metrics: Metrics) -> dict[tuple[str, str], float]:
    found = counted(metrics, "loramem_query_duration_seconds")
    return {(labels["mode"], labels["outcome"]): count for labels, count in found}


def test_each_question_is_counted_once_by_how_it_ended(metrics: Metrics) -> None:
    asked(metrics, "auto", routed(), DONE)
    asked(metrics, "auto", Routed(Decision("base", refuses=True)), replace(DONE, prompt_tokens=0))
    with pytest.raises(NotFound):
        ask_in_vain(metrics, NotFound("document", "doc_x"))
    for broken in (EngineUnavailable("gone"), ZeroDivisionError()):
        with pytest.raises(type(broken)):
            ask_in_vain(metrics, broken)
    with pytest.raises(GeneratorExit):
        ask_in_vain(metrics, GeneratorExit())
    assert outcomes(metrics) == {
        ("lora", "answered"): 1,
        ("base", "refused"): 1,
        ("rag", "rejected"): 1,
        ("rag", "failed"): 2,
        ("rag", "aborted"): 1,
    }
    assert value(metrics, "loramem_queries_in_flight", "loramem_queries_in_flight") == 0


def test_a_client_that_leaves_before_the_first_token_had_waited_for_it(metrics: Metrics) -> None:
    with pytest.raises(GeneratorExit):
        ask_in_vain(metrics, GeneratorExit())
    assert counted(metrics, "loramem_query_ttft_seconds") == [({"mode": "rag"}, 1)]
    family = "loramem_query_duration_seconds"
    waited = value(metrics, family, f"{family}_sum", mode="rag", outcome="aborted")
    assert value(metrics, "loramem_query_ttft_seconds", "loramem_query_ttft_seconds_sum", mode="rag") == waited > 0


def test_a_client_that_leaves_amid_its_answer_and_an_error_have_no_wait_for_a_token(metrics: Metrics) -> None:
    asked(metrics, "auto", routed(), Token("The"))
    with pytest.raises(EngineUnavailable):
        ask_in_vain(metrics, EngineUnavailable("gone"))
    assert counted(metrics, "loramem_query_ttft_seconds") == []


def ask_in_vain(metrics: Metrics, error: BaseException) -> None:
    with metrics.query("rag"):
        assert value(metrics, "loramem_queries_in_flight", "loramem_queries_in_flight") == 1
        raise error


def test_a_refusal_has_no_stages(metrics: Metrics) -> None:
    asked(metrics, "auto", Routed(Decision("base", refuses=True)), DONE)
    assert counted(metrics, "loramem_query_ttft_seconds") == []
    assert counted(metrics, "loramem_tokens") == []


def test_an_answer_shows_in_time_stages_and_tokens(metrics: Metrics) -> None:
    metrics.observe_answer("hybrid", DONE)
    family = "loramem_query_overhead_seconds"
    assert value(metrics, family, f"{family}_sum", mode="hybrid") == pytest.approx(0.5 - 0.421)
    assert value(metrics, "loramem_query_ttft_seconds", "loramem_query_ttft_seconds_sum", mode="hybrid") == 0.06
    for stage in STAGES:
        family = "loramem_query_stage_duration_seconds"
        seconds = value(metrics, family, f"{family}_sum", mode="hybrid", stage=stage)
        assert seconds == pytest.approx(TIMES[stage] / 1000)
    for kind, count in (("prompt", 50), ("completion", 7)):
        assert value(metrics, "loramem_tokens", "loramem_tokens_total", mode="hybrid", kind=kind) == count


def test_stages_that_did_not_happen_are_not_counted(metrics: Metrics) -> None:
    metrics.observe_answer("base", Done("stop", 1, 1, {"decode": 5.0, "total": 9.0}))
    (stage,) = counted(metrics, "loramem_query_stage_duration_seconds")
    assert stage == ({"mode": "base", "stage": "decode"}, 1)


def test_an_answer_without_a_first_token_has_no_time_to_it(metrics: Metrics) -> None:
    metrics.observe_answer("base", Done("stop", 1, 0, {"total": 9.0}))
    assert counted(metrics, "loramem_query_ttft_seconds") == []


def test_what_may_happen_begins_at_nought(metrics: Metrics) -> None:
    for mode in get_args(AskedMode):
        name = "loramem_query_duration_seconds"
        assert value(metrics, name, f"{name}_count", mode=mode, outcome="failed") == 0
    assert value(metrics, "loramem_merges", "loramem_merges_total", method="ties", cache="miss") == 0


def test_a_route_shows_its_score_and_its_merge(metrics: Metrics) -> None:
    metrics.observe_route(routed("ties"))
    metrics.observe_route(routed("ties", hit=True))
    metrics.observe_route(routed("cat", score=-0.1))
    for method, cache in (("ties", "miss"), ("ties", "hit"), ("cat", "miss")):
        assert value(metrics, "loramem_merges", "loramem_merges_total", method=method, cache=cache) == 1
    assert value(metrics, "loramem_route_score", "loramem_route_score_count") == 3
    assert value(metrics, "loramem_route_score", "loramem_route_score_bucket", le="0.65") == 3
    assert value(metrics, "loramem_route_score", "loramem_route_score_bucket", le="0.6") == 1


def test_how_sure_the_router_was_is_counted_where_it_was_asked(metrics: Metrics) -> None:
    for one in (routed(), routed(), Routed(Decision("base"))):
        metrics.observe_route(one)
    assert value(metrics, "loramem_route_choices", "loramem_route_choices_total", confidence="confident") == 2


@pytest.mark.parametrize("mode", ["lora", "rag", "icl", "hybrid", "base"])
def test_every_question_that_was_routed_shows_the_best_score_and_its_lead(metrics: Metrics, mode: Mode) -> None:
    choice = Choice("untrained", 1, 0.3, "it has no adapter yet", 0.6)
    metrics.observe_route(Routed(Decision(mode, choice, refuses=mode == "base")))
    assert value(metrics, "loramem_route_score", "loramem_route_score_sum") == 0.6
    assert value(metrics, "loramem_route_margin", "loramem_route_margin_sum") == 0.3


def test_without_an_adapter_there_is_no_score_and_no_lead(metrics: Metrics) -> None:
    metrics.observe_route(Routed(Decision("rag", Choice("untrained", 0, 1.0, "it has no adapter yet"))))
    for name in ("loramem_route_score", "loramem_route_margin"):
        assert value(metrics, name, f"{name}_count") == 0


def test_every_candidate_of_a_selection_is_counted_and_so_is_what_was_dropped(metrics: Metrics) -> None:
    (one,), (other,) = routed("linear").prepared, routed("linear", hit=True).prepared
    metrics.observe_route(replace(routed(), prepared=(one, other), selection=Selection(1, (0.5, 2.0), 4, 0.05)))
    for cache in ("miss", "hit"):
        assert value(metrics, "loramem_merges", "loramem_merges_total", method="linear", cache=cache) == 1
    assert value(metrics, "loramem_selections", "loramem_selections_total", winner="other") == 1
    metrics.observe_answer("lora", replace(DONE, dropped_tokens=4))
    assert value(metrics, "loramem_tokens", "loramem_tokens_total", mode="lora", kind="dropped") == 4
    assert value(metrics, "loramem_tokens", "loramem_tokens_total", mode="lora", kind="completion") == 7


def test_only_a_miss_has_seconds(metrics: Metrics) -> None:
    for hit in (False, True, True):
        metrics.observe_route(routed("ties", hit=hit))
    family = "loramem_merge_duration_seconds"
    assert value(metrics, family, f"{family}_count", method="ties") == 1
    assert value(metrics, family, f"{family}_sum", method="ties") == 0.03


def test_the_pool_is_shown_as_it_was_last_told(metrics: Metrics) -> None:
    assert scraped(metrics)["loramem_adapter_pool_bytes"].samples == []
    metrics.observe_route(routed("ties"))
    for tier, stats in TIERS.items():
        assert value(metrics, "loramem_adapter_pool_bytes", "loramem_adapter_pool_bytes", tier=tier) == stats["bytes"]
        requests = "loramem_adapter_pool_requests"
        assert value(metrics, requests, f"{requests}_total", tier=tier, result="hit") == stats["hits"]
        assert value(metrics, requests, f"{requests}_total", tier=tier, result="miss") == stats["misses"]
        evictions = "loramem_adapter_pool_evictions"
        assert value(metrics, evictions, f"{evictions}_total", tier=tier) == stats["evictions"]


def test_a_single_adapter_counts_as_such_and_base_has_no_route(metrics: Metrics) -> None:
    metrics.observe_route(routed())
    metrics.observe_route(Routed(Decision("base")))
    assert value(metrics, "loramem_merges", "loramem_merges_total", method="single", cache="miss") == 1
    assert value(metrics, "loramem_route_score", "loramem_route_score_count") == 1


def test_labels_come_from_closed_sets(metrics: Metrics, index: VectorIndex) -> None:
    for mode in get_args(Mode):
        asked(metrics, mode, Routed(Decision(mode)), DONE)
    metrics.observe_transaction("read", 0.1)
    index.search("default", np.ones(4, dtype=np.float32), 1)
    for method in (None, *get_args(MergeMethod)):
        metrics.observe_route(routed(method))
    allowed = {
        "mode": set(get_args(AskedMode)),
        "stage": set(STAGES),
        "method": {"single", *get_args(MergeMethod)},
        "cache": {"hit", "miss"},
        "result": {"hit", "miss"},
        "tier": {"disk", "host", "device"},
        "kind": {"prompt", "completion", "dropped", "read", "write", "text", "questions", *STORES},
        "outcome": set(get_args(Outcome)),
        "winner": {"first", "other"},
        "state": {*JobState, "pending", "indexed", "live", "retired"},
        "confidence": set(get_args(Confidence)),
        "version": {__version__},
    }
    for family in scraped(metrics).values():
        for sample in family.samples:
            assert all(text in allowed[label] for label, text in sample.labels.items() if label != "le"), sample


def test_gauges_are_what_the_database_holds(metrics: Metrics, queue: JobQueue, database: Database) -> None:
    for document_id in ("doc_a", "doc_b"):
        add_document(database, document_id, "text")
        with database.write() as session:
            queue.enqueue(session, document_id, 1)
    serve(database, "doc_a", np.eye(4, dtype=np.float32)[:2], per_chunk=1)
    add_adapters(database, "doc_a")
    with database.write() as session:
        session.execute(update(Job).where(Job.document_id == "doc_b").values(not_before=Job.not_before - 100))
    assert value(metrics, "loramem_documents", "loramem_documents", state="live") == 1
    assert value(metrics, "loramem_documents", "loramem_documents", state="pending") == 1
    assert value(metrics, "loramem_adapters", "loramem_adapters", state="live") == 2
    assert value(metrics, "loramem_store_bytes", "loramem_store_bytes", kind="adapters") == 2
    assert value(metrics, "loramem_store_bytes", "loramem_store_bytes", kind="database") > 10_000
    assert value(metrics, "loramem_jobs", "loramem_jobs", state="queued") == 2
    assert value(metrics, "loramem_jobs", "loramem_jobs", state="dead") == 0  # states without a job are there, too
    age = value(metrics, "loramem_job_queue_oldest_age_seconds", "loramem_job_queue_oldest_age_seconds")
    assert 100 <= age < 110


def test_the_index_says_what_it_holds_and_how_far_it_is_behind(
    metrics: Metrics, index: VectorIndex, database: Database
) -> None:
    add_document(database, "doc_a", "text")
    serve(database, "doc_a", np.eye(4, dtype=np.float32)[:2], per_chunk=1)
    assert value(metrics, "loramem_index_vectors", "loramem_index_vectors", kind="text") == 0  # nobody asked yet
    index.search("default", np.ones(4, dtype=np.float32), 1)
    assert value(metrics, "loramem_index_vectors", "loramem_index_vectors", kind="text") == 2
    assert value(metrics, "loramem_index_lag", "loramem_index_lag") == 0
    with database.write() as session:
        session.execute(update(Namespace).values(generation=Namespace.generation + 3))
    assert value(metrics, "loramem_index_lag", "loramem_index_lag") == 3


def test_the_disk_is_told_and_files_that_were_added(metrics: Metrics, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "job_a").mkdir(parents=True)
    before = value(metrics, "loramem_store_bytes", "loramem_store_bytes", kind="jobs")
    (tmp_path / "jobs" / "job_a" / "state").write_bytes(bytes(1000))
    assert value(metrics, "loramem_store_bytes", "loramem_store_bytes", kind="jobs") == before + 1000
    free, size = (value(metrics, name, name) for name in ("loramem_disk_free_bytes", "loramem_disk_size_bytes"))
    assert 0 < free < size


def test_a_database_that_is_away_is_told_and_the_rest_still_is(
    metrics: Metrics, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert value(metrics, "loramem_database_up", "loramem_database_up") == 1
    gone = OperationalError("SELECT 1", {}, Exception("away"))
    monkeypatch.setattr(database, "read", lambda: (_ for _ in ()).throw(gone))
    assert value(metrics, "loramem_database_up", "loramem_database_up") == 0
    assert "loramem_jobs" not in scraped(metrics)
    assert value(metrics, "loramem_engine_up", "loramem_engine_up") == 0


def test_transactions_are_timed(tmp_path: Path, migrated: Path) -> None:
    metrics = Metrics()
    database = Database(f"sqlite:///{shutil.copy(migrated, tmp_path / 'other.db')}", metrics.observe_transaction)
    with database.read():
        pass
    with pytest.raises(ZeroDivisionError), database.write():
        raise ZeroDivisionError
    database.close()
    family = "loramem_database_transaction_seconds"
    for kind in ("read", "write"):
        assert value(metrics, family, f"{family}_count", kind=kind) == 1


def test_two_gateways_live_in_one_process(metrics: Metrics) -> None:
    other = Metrics()
    metrics.observe_answer("rag", DONE)
    assert counted(other, "loramem_query_ttft_seconds") == []
    assert value(metrics, "loramem_build_info", "loramem_build_info", version=__version__) == 1


def test_slots_that_are_held_and_questions_that_wait_for_one() -> None:
    async def scenario() -> None:
        slots, made = Slots(lambda: 1), Metrics()
        made.registry.register(Process(ScriptedEngine(None), slots))
        async with slots.held(1):
            waiting = asyncio.create_task(hold(slots))
            await asyncio.sleep(0)
            assert value(made, "loramem_slots", "loramem_slots") == ScriptedEngine(None).slots
            assert value(made, "loramem_slots_held", "loramem_slots_held") == 1
            assert value(made, "loramem_slots_waiting", "loramem_slots_waiting") == 1
        await waiting
        assert value(made, "loramem_slots_held", "loramem_slots_held") == 0

    async def hold(slots: Slots) -> None:
        async with slots.held(2):
            pass

    asyncio.run(asyncio.wait_for(scenario(), 20))
