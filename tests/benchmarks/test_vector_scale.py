import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import vector_scale
from benchmarks.vector_scale import DIM, documents, fall_behind, search, spread, unit
from loramem.vector_set import VectorSet

RANDOM = np.random.default_rng(0)


def test_vectors_are_the_real_ones_and_mixtures_of_two_near_one_of_them() -> None:
    base = unit(RANDOM.standard_normal((50, DIM)).astype(np.float32))
    vectors = spread(base, 300, np.random.default_rng(1))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(300), abs=1e-5)
    nearest = (vectors @ base.T).max(axis=1)
    assert (nearest > 0.9999).sum() == 50
    assert nearest.min() > 0.5


def test_recall_counts_the_true_ten_and_sees_what_is_missing() -> None:
    vectors, asked = (unit(RANDOM.standard_normal((count, DIM)).astype(np.float32)) for count in (200, 5))
    whole = VectorSet.empty(DIM).changed((), documents(range(10)), vectors)
    assert search(whole, vectors, asked)["recall"] == 1.0
    half = whole.changed({f"doc_{number}" for number in range(5)}, {}, np.zeros((0, DIM), dtype=np.float32))
    assert 0.2 < search(half, vectors, asked)["recall"] < 0.8


def test_behind_means_documents_indexed_again_under_their_ids() -> None:
    vectors = unit(RANDOM.standard_normal((400, DIM)).astype(np.float32))
    fresh = VectorSet.empty(DIM).changed((), documents(range(20)), vectors).folded()
    before = vectors.copy()
    behind = fall_behind(fresh, vectors, np.random.default_rng(0))
    changed = (vectors != before).any(axis=1)
    assert changed.sum() == behind.delta.count == 100
    assert len(behind) == 400
    asked = vectors[:30]
    assert search(behind, vectors, asked)["recall"] == 1.0
    assert search(behind, before, asked)["recall"] < 1.0


def test_a_report_holds_every_figure_and_its_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_scale, "RECALL", 0.0)
    monkeypatch.setattr(vector_scale, "P99_MS", 60_000.0)
    out = tmp_path / "result.json"
    arguments = ["--json", "--count", "2000", "--sentences", "0", "--questions", "20", "--seed", "1", "--out", str(out)]
    assert vector_scale.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text())
    assert report["command"] == (
        "python -m benchmarks.vector_scale --json --count 2000 --sentences 0 --questions 20 --seed 1"
    )
    assert report["made_from"] == "random centres"
    assert {item["name"] for item in report["checks"]} == {
        f"{state}: {what}" for state in ("fresh", "behind") for what in ("p99 of a search", "recall at 10")
    }
    assert report["search"]["flat"]["recall"] == 1.0
    monkeypatch.setattr(vector_scale, "P99_MS", 0.0)
    assert vector_scale.main(arguments) == 1
