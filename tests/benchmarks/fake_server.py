"""A loramem server as the benchmarks see it, in memory: it learns a text by heart, or refuses, or fails."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from loramem.records import AdapterManifest, ExamResult
from loramem.store import MANIFEST
from tests.manifests import manifest

Json = dict[str, Any]


class FakeServer:
    """`answer(question, text, training)` is what it says; `refuses` and `fails` hold options that it does not train."""

    def __init__(
        self, answer: Callable[[str, str, Json], str], *, refuses: Mapping[str, Any], fails: Mapping[str, Any]
    ) -> None:
        self.answer, self.refuses, self.fails = answer, refuses, fails
        self.documents: dict[str, Json] = {}
        self.uploaded: list[Json] = []
        self.asked: list[Json] = []
        self.transport = httpx.MockTransport(self.reply)

    def reply(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content) if request.content else {}
        if path == "/documents" and request.method == "POST":
            return self._accept(body)
        if path == "/documents":
            data = [one for one in self.documents.values() if one["namespace"] == request.url.params["namespace"]]
            return httpx.Response(200, json={"data": data, "next_cursor": None})
        if request.method == "DELETE":
            del self.documents[path.rsplit("/", 1)[-1]]
            return httpx.Response(204)
        if path == "/query":
            return self._answered(body)
        if path.startswith("/jobs/"):
            return self._job(path)
        if path == "/adapters":
            return httpx.Response(200, json=page(request.url.params))
        return httpx.Response(200, content=archive(path.split("/")[2]))

    def _accept(self, body: Json) -> httpx.Response:
        training = body.get("training", {})
        self.uploaded.append(training)
        if self.refuses and self.refuses.items() <= training.items():
            return httpx.Response(422, json={"detail": "no such thing here"})
        name = f"doc{len(self.uploaded)}"
        self.documents[name] = body | {"id": name}
        return httpx.Response(202, json={"document": {"id": name}, "job": {"id": f"job-{name}"}, "created": True})

    def _answered(self, body: Json) -> httpx.Response:
        self.asked.append(body)
        (name,) = body["document_ids"]
        text, training = self.documents[name]["text"], self.documents[name].get("training", {})
        spans = [{"document_id": name, "chunk": 0, "start": 0, "end": text.index(".") + 1}]
        return httpx.Response(200, json={"answer": self.answer(body["question"], text, training), "context": spans})

    def _job(self, path: str) -> httpx.Response:
        document = self.documents[path.split("/")[2].removeprefix("job-")]
        failed = bool(self.fails) and self.fails.items() <= document.get("training", {}).items()
        end = {"state": "failed" if failed else "succeeded"}
        if not path.endswith("/events"):
            return httpx.Response(200, json=end)
        events = [{"state": "running"}, {"phase": "index"}, *([] if failed else [{"phase": "train"}]), end]
        lines = "".join(f"id: {number}\ndata: {json.dumps(event)}\n\n" for number, event in enumerate(events))
        return httpx.Response(200, text=lines)


class MemoryServer(FakeServer):
    """Routes a question to the document whose title it begins with, `Roof` to the mill first; mode auto refuses where
    there is none such. Knows no merging by `cat`. Of several adapters, selecting finds the right one.

    The same external id in a namespace is the same document, of `chunks` adapters. `dies_after` so many answers it is
    gone.
    """

    def __init__(self) -> None:
        super().__init__(lambda question, text, training: "", refuses={}, fails={})
        self.dies_after = 10**6
        self.chunks = 1

    @property
    def answered(self) -> list[Json]:
        """What was asked for an answer, not to see where it is routed."""
        return [one for one in self.asked if one["max_tokens"] > 1]

    def reply(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "/models/tiny"}, {"id": "default:lora"}]})
        return super().reply(request)

    def _accept(self, body: Json) -> httpx.Response:
        same = [one for one in self.documents.values() if self._place(one) == self._place(body)]
        if same:
            known = {"id": same[0]["id"], "state": "live"}
            return httpx.Response(202, json={"document": known, "job": {"id": "none"}, "created": False})
        reply = super()._accept(body)
        found = json.loads(reply.content)
        return httpx.Response(202, json=found | {"document": found["document"] | {"state": "pending"}})

    def _place(self, one: Json) -> tuple[str, str]:
        return str(one["namespace"]), str(one.get("external_id", one["title"]))

    def _answered(self, body: Json) -> httpx.Response:
        if len(self.asked) >= self.dies_after:
            raise httpx.ConnectError("gone")
        if body.get("merge", {}).get("method") == "cat":
            return httpx.Response(422, json={"detail": "cat needs more rank"})
        self.asked.append(body)
        used = self._used(body) if body["mode"] != "base" else []
        mode = body["mode"] if body["mode"] != "auto" else "lora" if used else "base"
        selecting = mode == "lora" and body.get("compose", "select") == "select"
        right = [one for one in used if self._about(body, one)] if selecting else []
        answering = [*right, *used]
        choice = {"confidence": "confident" if used else "none", "count": 1, "margin": 0.5, "reason": "so"}
        reply = {
            "answer": self._said(answering[0]["text"]) if used else "I do not know",
            "mode": mode,
            "choice": choice if body["mode"] != "base" else None,
            "refused": body["mode"] == "auto" and not used,
            "routed": [{"document_id": one["id"]} for one in used] if mode in ("lora", "hybrid") else [],
            "merge": {"cache": "miss"} if len(used) > 1 and not selecting else None,
            "context": [{"document_id": one["id"]} for one in used] if mode != "lora" else [],
            "usage": {"completion_tokens": 4, "dropped_tokens": 4 * (len(used) - 1) if selecting else 0},
            "timings_ms": {"total": 100.0 + len(self.asked)},
        }
        return httpx.Response(200, json=reply)

    def _used(self, body: Json) -> list[Json]:
        """One for each adapter."""
        here = [one for one in self.documents.values() if one["namespace"] == body["namespace"]]
        known = [one for one in here if body["mode"] != "auto" or self._about(body, one)]
        named = body.get("document_ids", [one["id"] for one in here])
        adapters = [one for one in known if one["id"] in named for _ in range(self.chunks)]
        top_k = body.get("top_k", "auto")
        return sorted(adapters, key=lambda one: self._order(body, one))[: 1 if top_k == "auto" else top_k]

    def _about(self, body: Json, one: Json) -> bool:
        return bool(one["title"] == body["question"].split()[0])

    def _order(self, body: Json, one: Json) -> tuple[int, str]:
        if body["question"].startswith("Roof") and body["mode"] == "lora":
            return ["Mill", "Roof", "Barn", "Joined"].index(one["title"]), ""
        return 0 if self._about(body, one) else 1, one["title"]

    def _said(self, text: str) -> str:
        return "Jon Ask" if text.startswith("Jon") else text.split()[-1].rstrip(".")


def page(params: Mapping[str, str]) -> Json:
    """Two pages: a retired adapter, then a live one."""
    retired = {"id": "old", "chunk": 0, "rank": 8, "state": "retired", "exam": {"recall": 0.0}}
    live = retired | {"id": f"ad{params['document_id']}", "rank": 16, "state": "live", "exam": {"recall": 0.75}}
    if "after" in params:
        return {"data": [live], "has_more": False, "next_cursor": None}
    return {"data": [retired], "has_more": True, "next_cursor": "old"}


def learnt(adapter_id: str) -> AdapterManifest:
    exam = ExamResult(questions=4, recall=0.75, base_recall=0.0, loss=0.1, weak=False)
    return manifest(adapter_id, "f", rank=16, exam=exam, training={"steps": 80})


def archive(adapter_id: str, files: Mapping[str, bytes] | None = None) -> bytes:
    """A tar as a download gives it."""
    whole = dict(files or {}) | {MANIFEST: learnt(adapter_id).model_dump_json().encode()}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in whole.items():
            entry = tarfile.TarInfo(f"{adapter_id}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
