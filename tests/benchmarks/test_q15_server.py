import json
from typing import Any

import httpx
import pytest

from benchmarks import q15_server
from benchmarks.q15_plan import BASE, ICL, PER_QUESTION, PRELOADED, RAG, SINGLE, Document
from benchmarks.q15_server import (
    CHUNKS,
    FIRST,
    ICL_CACHED,
    OTHER,
    SECOND,
    STAGES,
    WARM_UP,
    WHOLE,
    NotAnswered,
    Questioner,
    bring_into_memory,
    learn,
    measure,
    turns,
)
from tests.benchmarks.fake_server import archive

Json = dict[str, Any]
TEXT = "Mill. " * 400
DOCUMENT = Document(title="Mill", text=TEXT, questions=("Who?", "When?", "Where?"))
DOCUMENTS = {CHUNKS: "doc1", WHOLE: "doc2"}
TIMINGS = {stage: float(number) for number, stage in enumerate(STAGES)} | {"ttft": 40.0, "total": 99.0}


class Server:
    """Has learnt the document as `adapters` adapters and as one; every adapter is routed to in turn."""

    def __init__(self, adapters: int = 5) -> None:
        self.adapters = {CHUNKS: adapters, WHOLE: 1}
        self.states = {CHUNKS: ["pending", "pending", "indexed"], WHOLE: ["pending"]}
        self.uploaded: list[Json] = []
        self.asked: list[Json] = []
        self.cache = "miss"
        self.transport = httpx.MockTransport(self.reply)

    def reply(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content) if request.content else {}
        if path == "/query":
            self.asked.append(body)
            return httpx.Response(200, json=self._answer(body))
        if path == "/documents" and request.method == "POST":
            self.uploaded.append(body)
            name = f"doc{len(self.uploaded)}"
            return httpx.Response(202, json={"document": {"id": name}, "job": {"id": f"job-{name}"}, "created": True})
        if path == "/documents":
            state = self.states[request.url.params["namespace"]].pop(0)
            data = [{"id": "d", "job_id": "job-d", "state": state}]
            return httpx.Response(200, json={"data": data, "next_cursor": None})
        if path.endswith("/events"):
            return httpx.Response(200, text='id: 1\ndata: {"state": "succeeded"}\n\n')
        if path.startswith("/jobs/"):
            return httpx.Response(200, json={"state": "succeeded" if self.uploaded[1:] else "running"})
        return self._adapters(path, request.url.params)

    def _adapters(self, path: str, params: httpx.QueryParams) -> httpx.Response:
        if path != "/adapters":
            return httpx.Response(200, content=archive(path.split("/")[2]))
        count = self.adapters[CHUNKS if params["document_id"] == "doc1" else WHOLE]
        data = [
            {"id": f"ad{number}", "chunk": count - number, "state": "live", "size_bytes": 100}
            for number in range(count)
        ]
        return httpx.Response(200, json={"data": data, "has_more": False, "next_cursor": None})

    def _answer(self, body: Json) -> Json:
        merging = body.get("compose") == "merge"
        first = len(self.asked)
        count = min(body.get("top_k", 1), self.adapters[body["namespace"]])
        here = self.adapters[body["namespace"]]
        routed = [{"adapter_id": f"ad{(first + place) % here}"} for place in range(count)]
        return {
            "routed": routed if body["mode"] == "lora" else [],
            "merge": {"cache": self.cache} if merging else None,
            "context": [{"start": 0, "end": 700}] if body["mode"] == "icl" else [],
            "usage": {"prompt_tokens": 30, "completion_tokens": 4},
            "timings_ms": TIMINGS,
        }


def questioner(server: Server) -> Questioner:
    return Questioner("http://test", DOCUMENTS, 9, server.transport)


def test_the_document_is_learnt_as_many_adapters_and_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q15_server, "INDEXED_POLL_S", 0.0)
    server = Server()
    training = {"formats": ["qa", "original"], "max_seconds": 2.5}
    learnt = learn("http://test", DOCUMENT, training, server.transport)
    assert [(one["namespace"], one["training"]) for one in server.uploaded] == [
        (CHUNKS, training | {"per": "chunk", "mend": False}),
        (WHOLE, training | {"per": "document", "mend": False}),
    ]
    assert server.states == {CHUNKS: [], WHOLE: []}  # asked until it could be read, or the job had ended
    assert learnt.documents == DOCUMENTS
    assert [one.manifest.adapter_id for one in learnt.adapters] == ["ad4", "ad3", "ad2", "ad1", "ad0"]  # by chunk
    assert learnt.whole.manifest.adapter_id == "ad0"
    assert learnt.adapter_bytes == 500
    assert 0 < learnt.index_s < learnt.learn_s[CHUNKS]


def test_too_few_adapters_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q15_server, "INDEXED_POLL_S", 0.0)
    with pytest.raises(SystemExit, match="became 2 adapters, 3 or more are needed"):
        learn("http://test", DOCUMENT, {"max_seconds": 2.5}, Server(2).transport)


def test_each_question_is_put_to_all_methods_in_random_order() -> None:
    order = list(turns(FIRST, DOCUMENT.questions, seed=1))
    for number, question in enumerate(DOCUMENT.questions, start=1):
        these = order[(number - 1) * len(FIRST) :][: len(FIRST)]
        assert {(one, asked) for one, asked, _ in these} == {(number, question)}
        assert sorted(method for *_, method in these) == sorted(FIRST)
    assert order == list(turns(FIRST, DOCUMENT.questions, seed=1)) != list(turns(FIRST, DOCUMENT.questions, seed=2))


def test_methods_ask_the_server_as_they_should() -> None:
    server = Server()
    with questioner(server) as asking:
        for method in (*FIRST, PER_QUESTION):
            asking.ask(method, "Who?", 7)
    base, icl, cached, rag, single, preloaded, per_question = server.asked
    assert base == {"question": "Who?", "mode": "base", "namespace": CHUNKS, "max_tokens": 9}
    assert rag == base | {"mode": "rag"}
    assert single == base | {"mode": "lora", "namespace": WHOLE, "top_k": 1}
    ties = {"method": "ties", "density": 0.5, "weights": "uniform"}
    merge = base | {"mode": "lora", "top_k": 3, "compose": "merge"}
    assert preloaded == merge | {"merge": ties | {"strength": 0.9999}}
    assert per_question == merge | {"merge": ties | {"strength": 0.9998}}
    assert [turn["content"] for turn in icl["messages"]] == ["(007) Read.", "Who?"]
    assert [turn["content"] for turn in cached["messages"]] == ["Read.", "Who?"]
    assert (icl["mode"], icl["truncate"], icl["document_ids"]) == ("icl", True, ["doc1"])


def test_the_warm_up_is_not_counted_and_setup_is_each_methods_own() -> None:
    server = Server()
    with questioner(server) as asking:
        served = measure(asking, FIRST, DOCUMENT, start_s=40.0, index_s=2.0, seed=0)
    assert {method: len(one.asked) for method, one in served.measured.items()} == dict.fromkeys(FIRST, 3)
    warm_ups = [one for one in server.asked if WARM_UP in json.dumps(one)]
    assert len(warm_ups) == len(FIRST)
    assert len(server.asked) == 4 * len(FIRST) + len(range(0, len(TEXT), 300))
    setups = {method: dict(one.setup_s) for method, one in served.measured.items()}
    assert setups[PRELOADED].pop("all_adapters_loading") > 0
    assert setups == {
        BASE: {"server_start": 40},
        ICL: {"server_start": 40},
        ICL_CACHED: {"server_start": 40},
        RAG: {"server_start": 40, "upload_and_index": 2},
        SINGLE: {"server_start": 40, "adapter_loading": TIMINGS["merge"] / 1000},
        PRELOADED: {"server_start": 40, "upload_and_index": 2},
    }
    strengths = [one["merge"]["strength"] for one in server.asked if "merge" in one]
    assert len(set(strengths)) == len(strengths)
    assert served.warmed == 5
    assert {one.read for one in served.answers[ICL]} == {700}


def test_stages_add_up_to_what_the_client_saw() -> None:
    with questioner(Server()) as asking:
        asked = asking.ask(BASE, "Who?", 1).asked
    assert list(asked.stages_ms) == [*STAGES, OTHER]
    assert {stage: asked.stages_ms[stage] for stage in STAGES} == {stage: TIMINGS[stage] for stage in STAGES}
    assert sum(asked.stages_ms.values()) == pytest.approx(asked.wall_ms)
    assert (asked.prompt_tokens, asked.output_tokens) == (30, 4)


def test_nothing_is_brought_into_memory_where_each_question_reads_its_own() -> None:
    server = Server()
    with questioner(server) as asking:
        served = measure(asking, SECOND, DOCUMENT, start_s=40.0, index_s=2.0, seed=0)
    assert len(server.asked) == 4 * len(SECOND)
    assert served.warmed == 0
    assert served.measured[PER_QUESTION].setup_s == {"server_start": 40, "upload_and_index": 2}


def test_all_of_the_text_is_asked_for() -> None:
    server = Server()
    text = "".join(f"{number:05d}" for number in range(20_000))
    with questioner(server) as asking:
        assert bring_into_memory(asking, text) == 5
    assert len(server.asked) == 32
    assert {one["top_k"] for one in server.asked} == {8}
    assert {one["max_tokens"] for one in server.asked} == {1}
    starts = [text.index(one["question"]) for one in server.asked]
    assert starts == list(range(0, len(text), len(text) // 32))


def test_a_merge_that_was_there_already_ends_the_run() -> None:
    server = Server()
    server.cache = "hit"
    with questioner(server) as asking, pytest.raises(SystemExit, match=r"anew for each question, not \[\('hit', 3\)\]"):
        measure(asking, SECOND, DOCUMENT, start_s=1.0, index_s=1.0, seed=0)


def test_a_question_that_is_not_answered_ends_the_run() -> None:
    refusing = httpx.MockTransport(lambda request: httpx.Response(422, json={"detail": "the prompt has 3000 tokens"}))
    with (
        Questioner("http://test", DOCUMENTS, 9, refusing) as asking,
        pytest.raises(NotAnswered, match=r"422.*3000 tokens"),
    ):
        asking.ask(BASE, "Who?", 1)

    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone")

    with (
        Questioner("http://test", DOCUMENTS, 9, httpx.MockTransport(gone)) as asking,
        pytest.raises(NotAnswered, match="gone"),
    ):
        asking.ask(BASE, "Who?", 1)
