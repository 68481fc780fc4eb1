"""A gateway and a bare engine on one port of 127.0.0.1 that stream at a fixed pace, for drivers that need real sockets.

It keeps documents, whose jobs succeed at once; answers are four tokens.
"""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]
TOKENS = ("It ", "was ", "in ", "1874\u2028.")
"""With a line separator that is none in an event."""


@dataclass
class FakeLoadServer:
    """`first_s` and `next_s` are slept before tokens; `slots` questions are answered at once, the others wait.

    `refuses` questions that hold a text with a status and problem code, `breaks` streams after the first token, `fails`
    them with an error event. `busy` is how often /metrics says that a job runs. `state` is that of every document. Each
    greedy answer, of gateway or engine, takes `drafts` drafted tokens.
    """

    first_s: float = 0.0
    next_s: float = 0.0
    slots: int = 1000
    engine_prompt_tokens: int = 20
    busy: int = 0
    drafts: int = 0
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    breaks: str = "\0"
    fails: str = "\0"
    state: str = "live"
    job_state: str = "succeeded"
    url: str = ""
    asked: list[Json] = field(default_factory=list)
    engine_asked: list[Json] = field(default_factory=list)
    documents: dict[str, Json] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    drafted: int = 0

    def app(self) -> Starlette:
        self.free = asyncio.Semaphore(self.slots)
        return Starlette(
            routes=[
                Route("/query", self.query, methods=["POST"]),
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/documents", self.accept, methods=["POST"]),
                Route("/documents", self.page),
                Route("/documents/{id}", self.show),
                Route("/documents/{id}", self.delete, methods=["DELETE"]),
                Route("/jobs/{id}/events", self.job_events),
                Route("/jobs/{id}", self.job),
                Route("/metrics", self.metrics),
                Route("/readyz", self.models),
            ]
        )

    async def query(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        for text, (status, code) in self.refuses.items():
            if text in body["question"]:
                return JSONResponse({"status": status, "code": code, "detail": "no"}, status)
        if not body.get("stream"):
            return JSONResponse(self._done(body))
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    async def _events(self, body: Json) -> AsyncIterator[str]:
        async with self._slot():
            yield event("route", self._head(body))
            async for number, token in self._tokens(body):
                yield event("token", {"text": token})
                if self.breaks in body["question"]:
                    return
                if self.fails in body["question"] and number == 0:
                    yield event("error", {"status": 503, "code": "engine-unavailable"})
                    return
            yield event("done", self._done(body))

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.engine_asked.append(body)
        return StreamingResponse(self._completion(body), media_type="text/event-stream")

    async def _completion(self, body: Json) -> AsyncIterator[str]:
        yield data({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        async for _, token in self._tokens(body):
            yield data({"choices": [{"delta": {"content": token}}], "usage": None})
        usage = {"prompt_tokens": self.engine_prompt_tokens, "completion_tokens": len(TOKENS)}
        yield data({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    async def _tokens(self, body: Json) -> AsyncIterator[tuple[int, str]]:
        self.drafted += 0 if body.get("temperature") else self.drafts
        for number, token in enumerate(TOKENS):
            await asyncio.sleep(self.next_s if number else self.first_s)
            yield number, token

    def _slot(self) -> Any:
        server = self

        class Slot:
            async def __aenter__(self) -> None:
                await server.free.acquire()
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)

            async def __aexit__(self, *_: object) -> None:
                server.at_once -= 1
                server.free.release()

        return Slot()

    def _head(self, body: Json) -> Json:
        named = body.get("document_ids") or list(self.documents)
        used = named[: body.get("top_k", 1)] if body["mode"] in ("lora", "hybrid") else []
        seen = sum(one["question"] == body["question"] for one in self.asked)
        merge = {"cache": "miss" if seen == 1 else "hit"} if len(used) > 1 else None
        return {"routed": [{"adapter_id": f"ada_{one}"} for one in used], "merge": merge}

    def _done(self, body: Json) -> Json:
        usage = {"prompt_tokens": 20, "completion_tokens": len(TOKENS)}
        return self._head(body) | {"answer": "".join(TOKENS).strip(), "usage": usage}

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": "tiny"}]})

    async def accept(self, request: Request) -> Response:
        body = await request.json()
        for name, known in self.documents.items():
            if body.get("external_id") and known.get("external_id") == body["external_id"]:
                return JSONResponse({"document": {"id": name}, "job": {"id": f"job_{name}"}, "created": False}, 202)
        name = f"doc_{len(self.documents) + len(self.deleted)}"
        self.documents[name] = body | {"id": name}
        return JSONResponse({"document": {"id": name}, "job": {"id": f"job_{name}"}, "created": True}, 202)

    async def page(self, request: Request) -> Response:
        wanted = request.query_params.get("namespace")
        data = [one for one in self.documents.values() if wanted in (None, one["namespace"])]
        return JSONResponse({"data": data, "has_more": False, "next_cursor": None})

    async def show(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name not in self.documents:
            return JSONResponse({"code": "not-found"}, 404)
        return JSONResponse({"id": name, "state": self.state, "job_id": f"job_{name}"})

    async def delete(self, request: Request) -> Response:
        name = request.path_params["id"]
        if self.documents.pop(name, None) is None:
            return JSONResponse({"code": "not-found"}, 404)
        self.deleted.append(name)
        return Response(status_code=204)

    async def job_events(self, request: Request) -> Response:
        return PlainTextResponse(event("state", {"state": self.job_state}), media_type="text/event-stream")

    async def job(self, request: Request) -> Response:
        return JSONResponse({"id": request.path_params["id"], "state": self.job_state})

    async def metrics(self, _: Request) -> Response:
        self.busy -= 1
        running = 1.0 if self.busy >= 0 else 0.0
        lines = ["# TYPE loramem_jobs gauge", f'loramem_jobs{{state="running"}} {running}']
        lines += ['loramem_jobs{state="queued"} 0.0', 'loramem_jobs{state="succeeded"} 7.0']
        lines += ["# TYPE loramem_slots gauge", "loramem_slots 16.0"]
        lines += [f'vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {self.drafted}.0', ""]
        return PlainTextResponse("\n".join(lines))


def event(kind: str, body: Json) -> str:
    return f"event: {kind}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"


def data(body: Json) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


@contextmanager
def served(server: FakeLoadServer) -> Iterator[FakeLoadServer]:
    """In a thread of its own; `server.url` is where."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(server.app, factory=True, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield server
    finally:
        runner.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
