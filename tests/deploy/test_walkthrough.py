"""walkthrough.sh against a server that answers in the real one's shapes, as the flow goes well or goes wrong.

The real engine is walked through in tests/flow.
"""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.api.schemas import (
    AcceptedOut,
    AnswerHead,
    AnswerOut,
    DocumentOut,
    JobOut,
    RoutedOut,
    Timings,
    TokenOut,
    Usage,
)
from tests.rules import ROOT

SCRIPT = ROOT / "deploy" / "walkthrough.sh"
FACTS = {"What are the pipes made of?": "glass", "How many pipes are there?": "444"}


@dataclass
class Behaviour:
    """How the server behaves, and what it saw."""

    final_state: str = "succeeded"
    knowing: tuple[str, ...] = ("lora", "rag", "icl", "hybrid")
    routed_to: str = "doc_1"
    broken_mode: str = ""
    deleted: bool = False
    keys: set[str | None] = field(default_factory=set)
    uploads: list[bytes] = field(default_factory=list)


def document() -> DocumentOut:
    return DocumentOut(
        id="doc_1", namespace="walkthrough", external_id=None, title="Organ", metadata={}, state="live",
        revision=1, serving_revision=1, job_id="job_1", created_at=0, updated_at=0,
    )  # fmt: skip


def job(state: str, error: dict[str, Any] | None = None) -> JobOut:
    return JobOut(
        id="job_1", kind="build", document_id="doc_1", revision=1, state=state, progress=None, attempts=1,
        max_attempts=3, cancel_requested=False, error=error, created_at=0, started_at=0, finished_at=0,
    )  # fmt: skip


def answer(mode: str, text: str, routed_to: str) -> AnswerOut:
    hit = RoutedOut(adapter_id="ada_1", document_id=routed_to, title="Organ", chunk=0, score=0.7, weight=1)
    routed = [hit] if mode in ("lora", "hybrid") else []
    return AnswerOut(
        id="ans_1", mode=mode, choice=None, refused=False, routed=routed, merge=None, context=[], answer=text,
        usage=Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2),
        timings_ms=Timings(ttft=40, total=120), finish_reason="stop",
    )  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        known = self.behaviour
        if self.path == "/jobs/job_1/events":
            progress = {"phase": "train", "percent": 50.0, "step": 3, "total_steps": 6, "loss": 0.5}
            events = ("progress", progress), ("state", {"state": known.final_state})
            self._reply(200, "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in events))
        elif self.path == "/jobs/job_1":
            error = None if known.final_state == "succeeded" else {"detail": "the loss is not a number"}
            self._reply(200, job(known.final_state, error).model_dump_json())
        elif self.path == "/documents/doc_1" and known.deleted:
            self._reply(404, '{"detail": "no document"}')
        else:
            self._reply(200, "{}")

    def do_DELETE(self) -> None:
        self.behaviour.deleted = True
        self._reply(204, "")

    def do_POST(self) -> None:
        self.behaviour.keys.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/documents":
            self.behaviour.uploads.append(body)
            accepted = AcceptedOut(document=document(), job=job("queued"), created=True)
            return self._reply(202, accepted.model_dump_json())
        return self._answer(json.loads(body))

    def _answer(self, asked: dict[str, Any]) -> None:
        mode, known = asked["mode"], self.behaviour
        if mode == known.broken_mode:
            return self._reply(503, '{"detail": "the engine died"}')
        text = f"It is {FACTS[asked['question']]}." if mode in known.knowing else "I\u2028do not know."
        reply = answer(mode, text, known.routed_to)
        if not asked.get("stream"):
            return self._reply(200, reply.model_dump_json())
        head = AnswerHead.model_validate(reply.model_dump(include=set(AnswerHead.model_fields)))
        events = ("route", head), ("token", TokenOut(text=text)), ("done", reply)
        return self._reply(200, "".join(f"event: {kind}\ndata: {data.model_dump_json()}\n\n" for kind, data in events))

    def _reply(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
def url(behaviour: Behaviour) -> Iterator[str]:
    handler = type("Bound", (Handler,), {"behaviour": behaviour})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A document with its questions beside it."""
    file = tmp_path / "organ.txt"
    file.write_text("The organ has 444 pipes of glass.")
    write_questions(file, len(FACTS))
    return file


@pytest.fixture
def one_asked(text: Path) -> Path:
    """The same with one question: each takes a process for every mode."""
    write_questions(text, 1)
    return text


def write_questions(text: Path, count: int) -> None:
    questions = [{"question": question, "expected": expected} for question, expected in FACTS.items()]
    text.with_suffix(".json").write_text(json.dumps(questions[:count]))


def walk(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LORAMEM_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=kept | environment)


def test_a_flow_that_works_ends_with_zero_and_shows_every_mode(url: str, text: Path, behaviour: Behaviour) -> None:
    done = walk("--cleanup", url, text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50.0 %  train  step 3 of 6  loss 0.500" in done.stderr
    assert "1. What are the pipes made of?   [glass]" in done.stdout
    for mode, right in {"base": 0, "lora": 2, "rag": 2, "icl": 2, "hybrid": 2}.items():
        assert f"   {mode:<7}  {right} of 2 right, median 120 ms" in done.stdout
    assert "ok     streaming: 1 tokens between route and done" in done.stdout
    assert behaviour.deleted
    assert b"The organ has 444 pipes of glass." in behaviour.uploads[0]


def test_the_key_is_sent_and_the_document_stays_without_cleanup(
    url: str, one_asked: Path, behaviour: Behaviour
) -> None:
    assert walk(url, one_asked, LORAMEM_API_KEY="k1").returncode == 0
    assert behaviour.keys == {"Bearer k1"}
    assert not behaviour.deleted


def test_a_failed_job_ends_it_with_the_reason(url: str, text: Path, behaviour: Behaviour) -> None:
    behaviour.final_state = "failed"
    done = walk(url, text)
    assert done.returncode == 1
    assert "job job_1 ended as failed" in done.stderr
    assert "the loss is not a number" in done.stderr


def test_weights_that_know_no_more_than_the_base_model_fail(url: str, one_asked: Path, behaviour: Behaviour) -> None:
    behaviour.knowing = ("rag", "icl")
    done = walk(url, one_asked)
    assert done.returncode == 1
    assert "FAILED lora knows more than base: 0 against 0" in done.stdout


def test_another_documents_adapter_fails(url: str, one_asked: Path, behaviour: Behaviour) -> None:
    behaviour.routed_to = "doc_2"
    done = walk(url, one_asked)
    assert done.returncode == 1
    assert "FAILED lora was routed to the document 0 times of 1" in done.stdout


def test_a_mode_that_does_not_answer_fails_with_its_status(url: str, one_asked: Path, behaviour: Behaviour) -> None:
    behaviour.broken_mode = "icl"
    done = walk(url, one_asked)
    assert done.returncode == 1
    assert "FAILED every mode answered every question" in done.stdout
    assert "icl: HTTP 503: the engine died" in done.stdout


def test_given_questions_need_no_file_of_them_and_no_expected_answer(url: str, text: Path) -> None:
    text.with_suffix(".json").unlink()
    done = walk("-q", "How many pipes are there?", url, text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "It is 444." in done.stdout
    assert " right, median" not in done.stdout


def test_a_file_without_questions_is_a_wrong_call(url: str, text: Path) -> None:
    text.with_suffix(".json").unlink()
    done = walk(url, text)
    assert done.returncode == 2
    assert "no questions for" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-q"], ["a", "b", "c"], ["http://127.0.0.1:9", "/no/such/file"]])
def test_a_wrong_call_is_explained(arguments: list[str]) -> None:
    done = walk(*arguments)
    assert done.returncode == 2
    assert "walkthrough" in done.stderr


def test_no_server_says_how_to_start_one(text: Path) -> None:
    done = walk("http://127.0.0.1:9", text)
    assert done.returncode == 1
    assert "http://127.0.0.1:9 is not ready; start it with: make run" in done.stderr


def test_the_sample_comes_with_ten_questions() -> None:
    listed = json.loads((ROOT / "deploy" / "sample.json").read_text())
    questions = listed["questions"] if isinstance(listed, dict) else listed
    assert len(questions) == 10
    text = (ROOT / "deploy" / "sample.txt").read_text().casefold()
    assert all(item["expected"].casefold() in text for item in questions)
