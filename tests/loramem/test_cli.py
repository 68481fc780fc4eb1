"""The command line against a client whose transport answers as the server does."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

import loramem
from loramem import cli
from loramem.client import Client
from loramem.settings import Settings
from tests.loramem.test_client import Handler, sse

DOCUMENT = {"id": "doc_1", "state": "live", "title": "Organ", "job_id": "job_1"}
DONE = {
    "mode": "lora",
    "routed": [{"title": "Organ", "document_id": "doc_1", "score": 0.71}],
    "timings_ms": {"total": 420.4},
}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LORAMEM_URL", "LORAMEM_API_KEY", "LORAMEM_API_KEYS", "LORAMEM_DATABASE_URL", "LORAMEM_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LORAMEM_HOME", str(tmp_path))


def run(monkeypatch: pytest.MonkeyPatch, handler: Handler, *arguments: str) -> tuple[int, str, str]:
    def client(url: str, api_key: str | None = None, namespace: str | None = None) -> Client:
        return Client(url, api_key, namespace, transport=httpx.MockTransport(handler))

    monkeypatch.setattr(cli, "Client", client)
    result = CliRunner().invoke(cli.app, arguments)
    return result.exit_code, result.stdout, result.stderr


def main(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from loramem.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_ask_streams_the_answer_and_tells_route_and_time_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body == {"question": "q", "mode": "lora", "top_k": 3, "namespace": "n", "stream": True}
        tokens = (("token", {"text": text}, "") for text in ("of ", "glass"))
        return httpx.Response(200, content=sse(("route", {}, ""), *tokens, ("done", DONE, "")))

    code, out, err = run(monkeypatch, handler, "ask", "q", "--top-k", "3", "--namespace", "n")
    assert (code, out, err) == (0, "of glass\n", "[lora; Organ (0.71); 420 ms]\n")


def test_ask_by_selecting_tells_whose_answer_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    hits = [{"adapter_id": f"ada_{n}", "title": f"Organ {n}", "document_id": "doc_1", "score": 0.7} for n in (1, 2)]

    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["compose"] == "select"
        return httpx.Response(200, content=sse(("done", DONE | {"routed": hits, "selected": "ada_2"}, "")))

    code, _, err = run(monkeypatch, handler, "ask", "q", "--compose", "select")
    assert (code, err) == (0, "[lora; Organ 2 (0.70); 420 ms]\n")


def test_ask_composed_in_an_unknown_way_names_the_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(monkeypatch, lambda request: httpx.Response(500), "ask", "q", "--compose", "blend")
    assert code == 2
    assert "merge, select" in " ".join(err.replace("│", " ").split())


def test_ask_as_json_prints_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(monkeypatch, lambda request: httpx.Response(200, json={"answer": "glass"}), "ask", "q", "--json")
    assert code == 0
    assert json.loads(out) == {"answer": "glass"}


def test_ask_in_an_unknown_mode_names_the_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run(monkeypatch, lambda request: httpx.Response(500), "ask", "q", "--mode", "magic")
    assert code == 2
    assert "base, lora, rag, icl, hybrid" in " ".join(err.replace("│", " ").split())


def uploading(final: dict[str, object]) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={"document": DOCUMENT, "job": {"id": "job_1"}, "created": True})
        progress = {"phase": "train", "percent": 61.5, "step": 20, "total_steps": 75, "loss": 0.41, "eta_s": 12.0}
        return httpx.Response(200, content=sse(("progress", progress, "1"), ("state", final, "2")))

    return handler


def test_upload_follows_the_job_to_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "organ.txt"
    file.write_text("pipes of glass")
    code, out, _ = run(monkeypatch, uploading({"state": "succeeded"}), "upload", str(file))
    assert code == 0
    assert out.splitlines() == [
        "document doc_1, job job_1",
        " 61.5 %  train  step 20 of 75  loss 0.410  about 12 s left",
        "succeeded",
    ]


def previewing(request: httpx.Request) -> httpx.Response:
    if request.method == "POST":
        assert request.url.params["preview"] == "true"
        return httpx.Response(202, json={"document": None, "job": {"id": "job_1"}, "created": False})
    if request.url.path.endswith("/events"):
        return httpx.Response(200, content=sse(("state", {"state": "succeeded"}, "1")))
    examples = [{"question": "How many pipes?", "answer": "It has 444 pipes.", "kind": "written"}]
    return httpx.Response(200, json={"preview": examples, "preview_counts": {"written": 1}})


def test_a_preview_shows_what_would_be_taught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "organ.txt"
    file.write_text("pipes of glass")
    code, out, _ = run(monkeypatch, previewing, "upload", str(file), "--preview")
    assert code == 0
    assert out.splitlines() == [
        "preview, job job_1",
        "succeeded",
        "[written] How many pipes?",
        "    It has 444 pipes.",
        "1 written",
    ]
    assert run(monkeypatch, previewing, "upload", str(file), "--preview", "--no-wait")[1] == "preview, job job_1\n"


def test_upload_of_a_document_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "organ.txt"
    file.write_text("pipes of glass")
    final: dict[str, object] = {"state": "failed", "error": {"detail": "the loss is not a number"}}
    code, _, err = run(monkeypatch, uploading(final), "upload", str(file))
    assert code == 1
    assert err == "loramem: job job_1 ended as failed: the loss is not a number\n"


def test_jobs_lists_the_latest_of_each_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/documents":
            queued = DOCUMENT | {"job_id": None}
            return httpx.Response(200, json={"data": [DOCUMENT, queued], "next_cursor": None})
        job = {"id": "job_1", "state": "running", "progress": {"phase": "train", "percent": 5.0}}
        return httpx.Response(200, json=job)

    assert run(monkeypatch, handler, "jobs")[1] == "job_1  running    Organ    5.0 %  train\n"


def test_documents_and_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            return httpx.Response(204)
        return httpx.Response(200, json={"data": [DOCUMENT], "next_cursor": None})

    assert run(monkeypatch, handler, "documents")[1] == "doc_1  live      Organ\n"
    assert run(monkeypatch, handler, "delete", "doc_1")[1] == "deleted doc_1\n"


STEERING = "Or\x1b[2Jg\x9b\ra\nn"


def test_a_title_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/documents":
            return httpx.Response(200, json={"data": [DOCUMENT | {"title": STEERING}], "next_cursor": None})
        return httpx.Response(200, json={"id": "job_1", "state": "running"})

    plain = r"Or\u001b[2Jg\u009b\u000da\u000an"
    assert run(monkeypatch, handler, "documents")[1] == f"doc_1  live      {plain}\n"
    assert run(monkeypatch, handler, "jobs")[1] == f"job_1  running    {plain}  running\n"
    listed = run(monkeypatch, handler, "documents", "--json")[1]
    assert listed.rstrip("\n").isprintable()
    assert json.loads(listed)["title"] == STEERING


def test_an_answer_keeps_its_lines_and_no_other_control_character(monkeypatch: pytest.MonkeyPatch) -> None:
    done = DONE | {"routed": [{"title": STEERING, "document_id": "doc_1", "score": 0.71}]}

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=sse(("token", {"text": "a\n\tb\x1b[2J"}, ""), ("done", done, "")))

    code, out, err = run(monkeypatch, handler, "ask", "q")
    assert (code, out) == (0, "a\n\tb\\u001b[2J\n")
    assert err.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("command", "empty"),
    [("upload", "the server's default"), ("ask", "the server's default"), ("documents", "all"), ("jobs", "all")],
)
def test_the_help_tells_which_namespaces_an_empty_one_means(command: str, empty: str) -> None:
    out = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    assert f"namespace of the documents; empty: {empty} " in " ".join(out.split())


def test_without_a_namespace_all_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[httpx.QueryParams] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params)
        return httpx.Response(200, json={"data": [], "next_cursor": None})

    for command in ("documents", "jobs"):
        run(monkeypatch, handler, command)
        run(monkeypatch, handler, command, "--namespace", "coast")
    assert [dict(params) for params in asked] == [{}, {"namespace": "coast"}] * 2


def test_the_first_configured_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer k1"
        return httpx.Response(204)

    monkeypatch.setenv("LORAMEM_API_KEYS", '["k1", "k2"]')
    assert run(monkeypatch, handler, "delete", "doc_1")[0] == 0


def test_settings_shows_values_and_defaults_and_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_API_KEYS", '["hush"]')
    monkeypatch.setenv("LORAMEM_DATABASE_URL", "postgresql://me:hush@db/loramem")
    monkeypatch.setenv("LORAMEM_PORT", "8123")
    out = CliRunner().invoke(cli.app, ["settings"]).stdout
    assert "hush" not in out
    assert 'LORAMEM_API_KEYS=["******"] (default empty)' in out
    assert "postgresql://me:******@db/loramem" in out
    assert "LORAMEM_PORT=8123 (default 8000)" in out


def test_the_settings_table_has_every_setting() -> None:
    table = "\n".join(cli.settings_table())
    assert table.count("| `LORAMEM_") == len(Settings.model_fields)
    assert "| `LORAMEM_RANK` | `16` | rank of a new adapter; one of 8, 16, 32, 64 |" in table


def test_migrate_makes_the_database(tmp_path: Path) -> None:
    done = main("migrate")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the database is up to date\n"
    assert (tmp_path / "loramem.db").exists()


def test_version() -> None:
    assert main("version").stdout.strip() == loramem.__version__


def test_a_wrong_setting_has_an_exit_status_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_PORT", "eighty")
    done = main("serve")
    assert done.returncode == 78
    assert "LORAMEM_PORT='eighty'" in done.stderr


def test_a_wrong_database_stops_the_start_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_DATABASE_URL", "postgres://me:hush@db/loramem")
    done = main("serve")
    assert (done.returncode, done.stdout) == (78, "")
    assert "LORAMEM_DATABASE_URL=" in done.stderr
    assert "hush" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://127.0.0.1:9", "loramem: no answer from http://127.0.0.1:9: "),
        ("http://127.0.0.1:80x", "loramem: no server can be asked at http://127.0.0.1:80x: "),
    ],
)
def test_no_server_is_one_line_on_stderr(url: str, line: str) -> None:
    done = main("documents", "--url", url)
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
