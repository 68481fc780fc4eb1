"""`python -m trainer_worker`: one worker process; it holds the base model warm between jobs."""

import logging
import signal
import sys
import threading
import time
from functools import partial
from types import FrameType

from loramem import tracing
from loramem.base_model import BaseModel, resolve_base_model
from loramem.database import Database
from loramem.doorbell import make_doorbell
from loramem.embed import load_embedder
from loramem.logs import configure
from loramem.migrate import migrate
from loramem.queue import JobQueue
from loramem.settings import Settings, load_settings
from loramem.store import AdapterStore
from trainer_worker.bar import bar
from trainer_worker.build import Builder
from trainer_worker.checkpoint import remove_checkpoint, sweep_checkpoints
from trainer_worker.consume import Hooks, consume
from trainer_worker.metrics import Metrics
from trainer_worker.sweep import sweep_events, sweep_previews, sweep_retired, sweep_superseded
from trainer_worker.traced import traced
from trainer_worker.writer import Writer, patience_s

log = logging.getLogger(__name__)

TEMPORARY_AFTER_S = 3600.0


def main() -> None:
    settings = load_settings()
    configure("worker", settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_stop, stop))
    tracing.configure(settings, "worker")
    metrics = Metrics()
    base = resolve_base_model(settings)
    database = Database(settings.sqlalchemy_url, metrics.observe_transaction)
    migrate(database)
    store = AdapterStore(settings.adapters_path)
    queue = JobQueue(database, make_doorbell(settings), settings)
    builder = make_builder(settings, base, database, queue, store, metrics)
    if settings.worker_metrics_port:  # health checks ask for them: not before it can work
        metrics.serve(settings.worker_metrics_host, settings.worker_metrics_port)
    chores = (
        partial(sweep_retired, database, store, settings.retired_grace_s),
        partial(sweep_superseded, database, settings.retired_grace_s),
        partial(store.sweep_temporary, TEMPORARY_AFTER_S),
        partial(sweep_previews, database),
        partial(sweep_events, database),
        partial(sweep_checkpoints, database, settings.jobs_path),
    )
    hooks = Hooks(
        observe=metrics.observe_end,
        watches=(traced, metrics.watch, partial(bar, sys.stderr)),
        forget=partial(remove_checkpoint, settings.jobs_path),
    )
    consume(queue, builder.work, settings, stop, chores, hooks)
    database.close()


def make_builder(
    settings: Settings, base: BaseModel, database: Database, queue: JobQueue, store: AdapterStore, metrics: Metrics
) -> Builder:
    """Load the embedder and the base model before the first job, so that no job waits for them."""
    started = time.monotonic()
    away = bool(settings.writer_url)  # our own gateway is asked directly, whatever proxy the environment names
    writer = Writer(
        settings.writer_base_url,
        settings.writer_model or "",
        settings.writer_key,
        patience_s=patience_s(settings.hang_after_s),
        proxies=away,
    )
    builder = Builder(settings, base, database, queue, store, load_embedder(settings), writer, metrics.observe_exam)
    _ = builder.trainer
    log.info("base model %s loaded in %.1f s", base.name, time.monotonic() - started)
    return builder


def _stop(stop: threading.Event, number: int, frame: FrameType | None) -> None:
    log.info("signal %d: the worker stops, a running job is handed back", number)
    stop.set()


if __name__ == "__main__":
    main()
