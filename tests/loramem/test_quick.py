"""Questions embedded by ONNX Runtime, beside the same by torch."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramem import quick
from loramem.embed import Embedder, load_embedder
from loramem.settings import Settings

QUESTIONS = ["Who?", "Who repaired the lighthouse lens?", "Was it Ångström, 北京 or “both”?", "why " * 600]


@pytest.fixture
def cache(embedder_cache: Path) -> Path:
    return embedder_cache


def load() -> Embedder:
    return load_embedder(Settings(), device="cpu")


class Runs:
    """Counts what ONNX Runtime is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, stock = 0, quick._run

        def run(*args: Any) -> Any:
            self.count += 1
            return stock(*args)

        monkeypatch.setattr(quick, "_run", run)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def test_a_question_has_the_vector_that_torch_gives_it(cache: Path, runs: Runs) -> None:
    stock, hastened = load(), load()
    hastened.hasten(cache)
    runs.count = 0
    for number, question in enumerate(QUESTIONS, 1):
        assert np.abs(hastened.embed_query(question) - stock.embed_query(question)).max() < 1e-5
        assert runs.count == number


def test_batches_stay_with_torch(cache: Path, runs: Runs) -> None:
    stock, hastened = load(), load()
    hastened.hasten(cache)
    runs.count = 0
    assert np.array_equal(hastened.embed(QUESTIONS), stock.embed(QUESTIONS))
    assert runs.count == 0


def test_a_graph_is_exported_once(cache: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(quick, "_export", export)
    hastened = load()
    hastened.hasten(cache)
    hastened.embed_query(QUESTIONS[0])
    assert runs.count == 3  # two to check the graph
    assert [path.name.startswith("embedder-") for path in cache.iterdir() if path.is_dir()] == [True]


@pytest.mark.parametrize("harm", ["damaged", "other weights", "no exporter"])
def test_without_a_right_graph_torch_goes_on_and_says_why(
    cache: Path,
    tmp_path: Path,
    harm: str,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    copy = shutil.copytree(cache, tmp_path / "copy")
    (graph,) = copy.glob("embedder-*/model.onnx")
    if harm == "damaged":
        graph.write_bytes(graph.read_bytes()[:1000])
    elif harm == "other weights":
        weights = graph.with_name("model.onnx.data")
        weights.write_bytes(weights.read_bytes()[::-1])
    else:
        shutil.rmtree(graph.parent)
        monkeypatch.setattr("torch.onnx.export", None)
    hastened = load()
    with caplog.at_level(logging.WARNING, logger="loramem.quick"):
        hastened.hasten(copy)
    (record,) = caplog.records
    assert record.getMessage().startswith("questions are embedded by torch, in about twice the time: ")
    runs.count = 0
    assert np.array_equal(hastened.embed_query(QUESTIONS[1]), load().embed_query(QUESTIONS[1]))
    assert runs.count == 0


def test_a_text_that_the_graph_fails_on_is_embedded_by_torch(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    hastened = load()
    hastened.hasten(cache)
    monkeypatch.setattr(quick, "_run", fail)
    assert np.array_equal(hastened.embed_query(QUESTIONS[1]), load().embed_query(QUESTIONS[1]))
    assert [record.getMessage() for record in caplog.records if record.name == "loramem.quick"] == [
        "ONNX Runtime failed on a text, torch embeds it: no memory"
    ]


def test_on_a_gpu_nothing_is_exported(tmp_path: Path) -> None:
    embedder = load()
    embedder.device = "cuda"
    embedder.hasten(tmp_path)
    assert list(tmp_path.iterdir()) == []
