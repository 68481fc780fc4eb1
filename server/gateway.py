"""Everything one gateway process holds, built once and closed in reverse."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import select

from loramem import tracing
from loramem.base_model import BaseModel, max_positions, resolve_base_model
from loramem.database import Database
from loramem.doorbell import Doorbell, make_doorbell
from loramem.embed import load_embedder
from loramem.errors import EngineUnavailable, SettingsError
from loramem.migrate import migrate
from loramem.queue import JobQueue
from loramem.settings import Settings
from loramem.store import AdapterStore
from loramem.tables import Adapter, AdapterState
from loramem.vectors import VectorIndex
from server.answer import Answerer
from server.context import PromptBuilder
from server.drafts import Drafts
from server.engine import memory
from server.engine.engine import Engine
from server.engine.options import least_kv_cache_bytes, step_tokens
from server.gauges import Process, Stores
from server.merge import Merger
from server.metrics import Metrics
from server.route import Router, passages_for

log = logging.getLogger(__name__)

RECONCILE_S = 5.0
FOLLOW_S = 5.0
AHEAD_S = 5.0
CALIBRATE_S = 5.0
WATCH_S = 1.0
TRIM_S = 60.0


@dataclass
class Gateway:
    settings: Settings
    base: BaseModel
    database: Database
    doorbell: Doorbell
    queue: JobQueue
    index: VectorIndex
    store: AdapterStore
    engine: Engine
    answerer: Answerer
    metrics: Metrics
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    engine_error: str = ""
    followers: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Start the engine and the housekeeping; uploads are taken while the engine still loads."""
        renew = self.answerer.router.calibrations.renew
        steps = (
            self._start_engine(),
            self._reopen(),
            self._repeated(self.queue.reconcile, RECONCILE_S, "reconciling the queue"),
            self._repeated(self.index.follow, FOLLOW_S, "bringing the index up to date"),
            self._repeated(renew, CALIBRATE_S, "learning the routing thresholds"),
            self._repeated(self.answerer.drafts.read_ahead, AHEAD_S, "reading what new adapters were taught"),
            self._watch_engine(),
            self._trim_memory(),
        )
        self.tasks = [asyncio.create_task(step) for step in steps]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.to_thread(self.engine.stop)
        for pool in (self.answerer.routing, self.answerer.prompting):
            pool.shutdown(wait=False, cancel_futures=True)
        try:
            await asyncio.to_thread(self.index.snapshot)
        except (OSError, RuntimeError):  # FAISS's own; the next start rebuilds what could not be kept
            log.exception("the index could not be written")
        self.doorbell.close()
        self.database.close()
        await asyncio.to_thread(tracing.flush)

    async def _start_engine(self) -> None:
        """An engine that cannot start ends the gateway: the supervisor tries again, and the log says why."""
        try:
            await self.engine.start()
        except Exception as error:  # whatever vLLM raises, the process must not linger without an engine
            self.engine_error = f"{type(error).__name__}: {error}"
            log.exception("the engine did not start")
            _end_process()

    async def _reopen(self) -> None:
        """Namespaces that were asked before the start are read before their next question, one after another."""
        try:
            for namespace in await asyncio.to_thread(self.index.asked_before):
                await asyncio.to_thread(self.index.open, namespace)
        except Exception:  # the first question in each reads what this did not
            log.exception("the namespaces that were asked before could not be listed")

    async def _repeated(self, work: Callable[[], object], every_s: float, what: str) -> None:
        """In 5 % of the time at most: a namespace that many documents come to is not read anew for each."""
        took = 0.0
        while True:
            await asyncio.sleep(max(every_s, 20 * took))
            started = time.perf_counter()
            try:
                await asyncio.to_thread(work)
            except Exception:  # a database that is away for a while must not end the housekeeping
                log.exception("%s failed; it is tried again", what)
                took = 0.0  # a database that is away is waited for, which is no work
            else:
                took = time.perf_counter() - started

    async def _watch_engine(self) -> None:
        while not self.engine.dead:  # noqa: ASYNC110 vLLM offers no event to wait for
            await asyncio.sleep(WATCH_S)
        log.error("the engine died; ending the gateway so that it is started afresh")
        _end_process()

    async def _trim_memory(self) -> None:
        while True:
            await asyncio.sleep(TRIM_S)
            await asyncio.to_thread(memory.trim)
            with suppress(EngineUnavailable):  # it loads or has died, and has nothing to give back
                await self.engine.trim_memory()


def build_gateway(settings: Settings) -> Gateway:
    """Open stores and load the embedder; blocking, a few seconds. Raises `SettingsError` for what cannot work."""
    base = resolve_base_model(settings)
    _check_window(settings, base)
    _check_engine(settings, base)
    metrics = Metrics()
    database = Database(settings.sqlalchemy_url, metrics.observe_transaction)
    migrate(database)
    _warn_of_another_base(database, base)
    doorbell = make_doorbell(settings)
    embedder = load_embedder(settings)
    embedder.hasten(settings.cache_path)
    index = VectorIndex(
        database, dim=embedder.dim, embedder_name=embedder.name, snapshot_dir=settings.cache_path / "index"
    )
    store = AdapterStore(settings.adapters_path)
    engine = Engine(settings, base)
    passages = passages_for(min(settings.rag_tokens, settings.max_model_len), settings.window_tokens)
    answerer = Answerer(
        database=database,
        router=Router(index, embedder, base.fingerprint, passages=passages),
        merger=Merger(engine, settings.max_lora_rank),
        prompts=PromptBuilder(database, engine, window=settings.max_model_len, rag_tokens=settings.rag_tokens),
        drafts=Drafts(database, engine),
        engine=engine,
    )
    queue = JobQueue(database, doorbell, settings)
    for gauges in (Process(engine, answerer.merger.slots), Stores(queue, database, index, settings)):
        metrics.registry.register(gauges)
    return Gateway(settings, base, database, doorbell, queue, index, store, engine, answerer, metrics)


def _check_window(settings: Settings, base: BaseModel) -> None:
    limit = max_positions(base)
    if limit and settings.max_model_len > limit:
        raise SettingsError(
            f"loramem: LORAMEM_MAX_MODEL_LEN={settings.max_model_len}: {base.name} reads at most {limit} tokens"
        )


def _check_engine(settings: Settings, base: BaseModel) -> None:
    """What vLLM would end at, in a process of its own and by names that are not ours."""
    import torch

    if settings.max_concurrent_requests > (most := step_tokens(settings)):
        raise SettingsError(
            f"loramem: LORAMEM_MAX_CONCURRENT_REQUESTS={settings.max_concurrent_requests}: at most {most}, "
            "the tokens of one step of the engine"
        )
    if not torch.cuda.is_available() and settings.kv_cache_bytes < (least := least_kv_cache_bytes(settings, base)):
        raise SettingsError(
            f"loramem: LORAMEM_KV_CACHE_BYTES={settings.kv_cache_bytes}: at least {least}, which one window of "
            f"{base.name} takes (LORAMEM_MAX_MODEL_LEN={settings.max_model_len})"
        )


def _warn_of_another_base(database: Database, base: BaseModel) -> None:
    with database.read() as session:
        found = session.scalars(select(Adapter.fingerprint).where(Adapter.state == AdapterState.LIVE).distinct()).all()
    if found and base.fingerprint not in found:
        log.warning(
            "no live adapter was trained on %s as it is now (LORAMEM_MODEL): none of them can answer", base.name
        )


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
