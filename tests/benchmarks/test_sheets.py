import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sheets
from benchmarks.sheets import MODES, SMOKE_QUESTIONS, read_sheets, summary
from loramem.client import Client
from tests.benchmarks.fake_server import MemoryServer

SHEET = {"title": "Mill", "text": "Jon Ask built it.", "questions": [{"question": "Who?", "answer": "Jon Ask"}]}


def test_sheets_are_read_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(SHEET))
    (tmp_path / "notes.txt").write_text("")
    assert [(one.name, one.title) for one in read_sheets(tmp_path)] == [("a", "Mill"), ("b", "Mill")]


def test_a_folder_without_sheets_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match=rf"{folder.name} holds no sheets"):
            read_sheets(folder)


def test_bounds_are_by_the_number_of_questions() -> None:
    right = dict.fromkeys(MODES, 9) | {"base": 2, "lora": 6, "hybrid": 8}
    report = summary([{"questions": 20, "right": right}])
    held = {one["name"]: one["ok"] for one in report["checks"]}
    assert held == {"base": True, "rag": True, "icl": True, "lora": False, "hybrid": False}


class Mute(MemoryServer):
    def _said(self, text: str) -> str:
        return "."


@pytest.mark.parametrize(("server", "status"), [(MemoryServer(), 0), (Mute(), 1)])
def test_a_smoke_run_promises_that_something_is_said(
    server: MemoryServer, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sheets, "Client", partial(Client, transport=server.transport))
    assert sheets.main(["--json", "--smoke"]) == status
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    (said,) = report["checks"]
    assert (said["name"], said["bound"]) == ("answers with a word", f"= {len(MODES) * SMOKE_QUESTIONS}")
    assert not server.documents
