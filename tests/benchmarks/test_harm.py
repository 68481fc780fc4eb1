import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harm
from benchmarks.adapters import Adapters, Archive, read_archives
from benchmarks.harm import Shown, checks, measure, shown
from benchmarks.passages import NotLearnt, Passage
from loramem.client import Client
from loramem.prompts import Message, with_passages
from tests.benchmarks.fake_server import FakeServer, archive
from tests.benchmarks.tiny_adapter import tar_of, train_tiny
from tests.trainer_worker.tiny import LESSONS
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.base import Base

PASSAGE = Passage("Mill", "Jon Ask built it.  \nIt is larch.", [{"question": "Who?", "answer": "Jon Ask"}])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, TrainedAdapter]:
    return train_tiny(tmp_path_factory.mktemp("tiny"))


def test_an_archive_gives_the_adapter_that_was_stored(trained: tuple[Base, TrainedAdapter], tmp_path: Path) -> None:
    base, adapter = trained
    read = Archive.of(tar_of(adapter, tmp_path / "a"))
    assert read.manifest.adapter_id == "ad1"
    with base.adapted(adapter):
        wanted = base.mean_loss(LESSONS)
    with base.adapted(read.adapter()):
        assert base.mean_loss(LESSONS) == pytest.approx(wanted, rel=0.02)  # it is stored in bfloat16
    with base.adapted(read.adapter(0.0)):
        assert base.mean_loss(LESSONS) == pytest.approx(base_loss(base, adapter), rel=1e-6)


def base_loss(base: Base, adapter: TrainedAdapter) -> float:
    nothing = {name: torch.zeros_like(tensor) for name, tensor in adapter.weights.items()}
    with base.adapted(replace(adapter, weights=nothing)):
        return base.mean_loss(LESSONS)


def test_another_alpha_counts(trained: tuple[Base, TrainedAdapter], tmp_path: Path) -> None:
    read = Archive.of(tar_of(trained[1], tmp_path / "a"))
    config = json.loads(read.files["adapter_config.json"])
    halved = Archive(read.files | {"adapter_config.json": json.dumps(config | {"lora_alpha": config["r"]}).encode()})
    for name, tensor in read.adapter(0.5).weights.items():
        assert torch.equal(halved.adapter().weights[name], tensor), name


def test_archives_of_a_folder_are_read_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.tar").write_bytes(archive(name))
    (tmp_path / "notes.txt").write_text("")
    assert [one.manifest.adapter_id for one in read_archives(tmp_path)] == ["a", "b"]


def test_live_adapters_of_a_document_are_found_on_later_pages() -> None:
    server = FakeServer(lambda *_: "", refuses={}, fails={})
    with Adapters("http://server", transport=server.transport) as adapters:
        assert [one["id"] for one in adapters.of("doc1")] == ["addoc1"]
        assert adapters.archive("addoc1").manifest.training["steps"] == 80


def test_questions_stand_after_the_text_that_the_server_shows() -> None:
    server = FakeServer(lambda *_: "", refuses={}, fails={})
    (one,) = shown(Client(transport=server.transport), PASSAGE)
    assert one == Shown(with_passages("Who?", ["Jon Ask built it."]), "Jon Ask")
    assert [(asked["mode"], asked["document_ids"]) for asked in server.asked] == [("rag", ["doc1"])]
    assert not server.documents


def test_a_text_that_is_never_indexed_is_named_and_removed() -> None:
    server = FakeServer(lambda *_: "", refuses={}, fails={"max_seconds": harm.BRIEF_S})
    with pytest.raises(NotLearnt, match="before its text was indexed"):
        shown(Client(transport=server.transport), PASSAGE)
    assert not server.documents


class Parrot:
    """Answers with the expected word, unless an adapter is at work above a strength that the question bears."""

    def __init__(self) -> None:
        self.strength = 0.0
        self.batches: list[int] = []

    @contextmanager
    def adapted(self, adapter: Any) -> Any:
        self.strength = adapter
        yield
        self.strength = 0.0

    def answers(self, conversations: Sequence[list[Message]], *, max_new_tokens: int) -> list[str]:
        self.batches.append(len(conversations))
        return ["copper" if self.strength <= float(one[0]["content"]) else "larch" for one in conversations]


class Whole(Archive):
    def adapter(self, strength: float = 1.0) -> Any:
        return strength


def test_points_lost_are_means_over_adapters_paired_by_question() -> None:
    weak, strong = ([Shown([{"role": "user", "content": bears}], "copper")] * 5 for bears in ("0.5", "2"))
    archives = [Whole(Archive.of(archive(name)).files) for name in ("a", "b")]
    parrot = Parrot()
    report = measure(parrot, archives, [weak, *[strong] * 3], {"full": 1.0, "hybrid": 0.25}, 0)  # type: ignore[arg-type]
    assert (report["f1_without"], report["adapters"], report["questions"]) == (1.0, 2, 20)
    full, hybrid = report["strengths"]["full"], report["strengths"]["hybrid"]
    assert (full["f1_by_adapter"], full["lost_points"]) == ([0.75, 0.75], 25.0)
    assert full["lost_interval"] == [0.0, 75.0]  # four passages, of which any may be drawn again
    assert (hybrid["lost_points"], hybrid["lost_interval"]) == (0.0, [0.0, 0.0])
    assert set(parrot.batches) == {8, 4}
    alone = measure(parrot, archives, [weak], {"full": 1.0}, 0)["strengths"]["full"]  # type: ignore[arg-type]
    assert (alone["lost_points"], alone["lost_interval"]) == (100.0, None)
    assert (report["answers"], report["with_a_word"]) == (20 * 5, 20 * 5)
    assert [(one["value"], one["ok"]) for one in checks(report)] == [(1.0, True), (25.0, False), (0.0, True)]


def test_where_nothing_was_right_without_an_adapter_nothing_is_shown() -> None:
    asked = [Shown([{"role": "user", "content": "2"}], expected) for expected in ("brick", "wood")]
    archives = [Whole(Archive.of(archive("a")).files)]
    report = measure(Parrot(), archives, [asked], {"full": 1.0}, 0)  # type: ignore[arg-type]
    assert [(one["value"], one["ok"]) for one in checks(report)] == [(0.0, False), (0.0, True)]


@pytest.mark.parametrize(("adapted", "ok"), [("larch", True), ("", False)])
def test_a_smoke_run_promises_that_something_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], adapted: str, ok: bool
) -> None:
    class Muted(Parrot):
        def answers(self, conversations: Sequence[list[Message]], *, max_new_tokens: int) -> list[str]:
            return [adapted if self.strength else "brick" for _ in conversations]

    def measured(url: str, key: str | None, archives: Sequence[Archive], *_: object) -> dict[str, Any]:
        asked = [Shown([{"role": "user", "content": "2"}], "copper")] * 3
        return measure(Muted(), archives, [asked], {"full": 1.0}, 0)  # type: ignore[arg-type]

    monkeypatch.setattr(harm, "read_passages", lambda data: [PASSAGE, replace(PASSAGE, title="Roof")])
    monkeypatch.setattr(harm, "_learn", lambda *_: [Whole(Archive.of(archive("a")).files)])
    monkeypatch.setattr(harm, "harm", measured)
    assert harm.main(["--json", "--smoke"]) == int(not ok)
    (said,) = json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]
    assert (said["name"], said["value"], said["bound"]) == ("answers with a word", 6 if ok else 3, "= 6")


def test_adapters_of_another_model_and_none_at_all_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from loramem import base_model
    from loramem.base_model import BaseModel

    here = BaseModel(path=tmp_path, name="tiny", fingerprint="other")
    monkeypatch.setattr(base_model, "resolve_base_model", lambda settings: here)
    with pytest.raises(ValueError, match=r"of tiny .* \['ad1'\]"):
        harm.harm("", None, [Archive.of(archive("ad1"))], [], 0)
    with pytest.raises(ValueError, match="need adapters"):
        harm.harm("", None, [], [], 0)
