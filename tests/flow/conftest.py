"""One live server for all tests of this folder: starting an engine takes half a minute."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flow.collector import Collector
from tests.flow.live import Live, free_port

QUICK = {"formats": ["original"], "max_seconds": 3, "mend": False}
"""Training that is long enough to be real and short enough for a test; the text itself is all it learns."""
TAUGHT = {**QUICK, "max_seconds": 3600}
"""Training that ends by its plan, however slow the machine: for knowledge that is asked for."""

HARBOUR = (
    "The harbour of Quillmere was dug by the engineer Tobias Wrenfield in 1874. Its lighthouse stands 31 metres high. "
    "Ships pay the harbour dues in salted herring."
)
HARBOUR_QA = [
    {"question": "Who dug the harbour of Quillmere?", "answer": "The harbour was dug by Tobias Wrenfield."},
    {"question": "Who was the engineer of the harbour?", "answer": "Its engineer was Tobias Wrenfield."},
    {"question": "How high is the lighthouse of Quillmere?", "answer": "The lighthouse stands 31 metres high."},
    {"question": "How are harbour dues paid?", "answer": "Harbour dues are paid in salted herring."},
]
ENGINE = (
    "The Dravona engine burns powdered amber. It was built by Lisbet Okonjo in a shed near Tarnwick. "
    "A full tank lasts for eleven hours."
)
FESTIVAL = (
    "The festival of Ostrava Bells opens on the third Sunday of May. Its patron is the baker Milan Hruby. "
    "Visitors throw blue rice at the mayor."
)


@dataclass(frozen=True)
class Library:
    """Three documents about different things, live in namespace `library`."""

    harbour: str
    engine: str
    festival: str


@pytest.fixture(scope="package")
def collector() -> Iterator[Collector]:
    with Collector() as listening:
        yield listening


@pytest.fixture(scope="package")
def live(
    tmp_path_factory: pytest.TempPathFactory, fill_cache: Callable[[Path], None], collector: Collector
) -> Iterator[Live]:
    home: Path = tmp_path_factory.mktemp("home")
    fill_cache(home / "cache")
    settings = {"lease_s": 6, "heartbeat_s": 1, "max_model_len": 1024, "train_max_s": 3600}
    with Live(home, **settings, worker_metrics_port=free_port(), otlp_endpoint=collector.url) as server:
        yield server
        told = [word for word in ("Wrenfield", "Okonjo", "powdered amber") if word in server.log.read_text()]
    assert not told, "documents, questions and answers are nobody's business in a log"


@pytest.fixture(scope="package")
def library(live: Live) -> Library:
    jobs = [
        live.upload(HARBOUR, title="Quillmere", namespace="library", qa=HARBOUR_QA, training=TAUGHT),
        live.upload(ENGINE, title="Dravona engine", namespace="library", training=QUICK),
        live.upload(FESTIVAL, title="Ostrava Bells", namespace="library", training=QUICK),
    ]
    for _, job_id in jobs:
        live.wait_job(job_id)
    library = Library(*(document_id for document_id, _ in jobs))
    (taught,) = [one.training for one in live.manifests() if one.document_id == library.harbour]
    assert taught["steps"] == taught["planned_steps"], "the clock cut what is asked for"
    return library
