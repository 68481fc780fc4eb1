"""Whatever is wrong gets a 4xx that names the key, the value and what is allowed, and changes nothing."""

import json
from typing import Any

import pytest

from tests.files import PNG, make_docx, make_pdf, with_member
from tests.server.api.conftest import MakeMemory
from tests.server.api.memory import BAKERY, LIGHTHOUSE, QUESTION, Memory

TEXT_FILE = ("notes.txt", b"Some text.", "text/plain")
HUGE = "x" * 3000


@pytest.fixture(scope="module")
def memory(make_unchanged: MakeMemory) -> Memory:
    """An empty one for all tests: `refused` sees to it that nothing changes."""
    return make_unchanged()


@pytest.fixture(scope="module")
def taught(make_unchanged: MakeMemory) -> Memory:
    """The same with a document that was learnt."""
    memory = make_unchanged()
    memory.teach()
    return memory


def refused(memory: Memory, method: str, path: str, status: int, **request: Any) -> dict[str, Any]:
    """Send it; check the status, the problem document and that no row changed. Returns the problem."""
    before, asked = memory.rows(), len(memory.engine.prompts)
    reply = memory.client.request(method, path, **request)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = reply.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:loramem:error:{problem['code']}"
    assert problem["detail"]
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert memory.rows() == before
    assert len(memory.engine.prompts) == asked
    return problem


def named(problem: dict[str, Any]) -> tuple[Any, Any]:
    assert problem["allowed"]
    return problem["key"], problem["value"]


# uploads


@pytest.mark.parametrize("text", ["", "   \n\t ", "\u00a0\u2003"])
def test_a_text_without_a_word(memory: Memory, text: str) -> None:
    assert named(refused(memory, "POST", "/documents", 422, json={"text": text})) == ("text", text)


@pytest.mark.parametrize(
    ("body", "key", "value"),
    [
        ({}, "text", "(missing)"),
        ({"text": 7}, "text", 7),
        ({"text": None}, "text", None),
        ({"text": "a\0b"}, "text", "a\0b"),
        ({"text": "ok", "training": {"rank": 7}}, "training.rank", 7),
        ({"text": "ok", "training": {"rank": "16"}}, "training.rank", "16"),
        ({"text": "ok", "training": {"max_seconds": 0}}, "training.max_seconds", 0),
        ({"text": "ok", "training": {"formats": []}}, "training.formats", "[]"),
        ({"text": "ok", "training": {"formats": ["poem"]}}, "training.formats.0", "poem"),
        ({"text": "ok", "training": {"depth": 2}}, "training.depth", 2),
        ({"text": "ok", "namespace": "Not a name"}, "namespace", "Not a name"),
        ({"text": "ok", "external_id": ""}, "external_id", ""),
        ({"text": "ok", "external_id": "x" * 257}, "external_id", "x" * 120 + "…"),
        ({"text": "ok", "title": "x" * 501}, "title", "x" * 120 + "…"),
        ({"text": "ok", "qa": [{"question": " ", "answer": "a"}]}, "qa.0.question", " "),
        ({"text": "ok", "qa": [{"question": "q"}]}, "qa.0.answer", "(missing)"),
        ({"text": "ok", "metadata": {"note": "x" * 20_000}}, "metadata", '{"note": "' + "x" * 110 + "…"),
        ({"text": "ok", "metadata": {"note": "\0"}}, "metadata", '{"note": "\\u0000"}'),
        ({"text": "ok", "metadata": {"note": ["\\\0"]}}, "metadata", '{"note": ["\\\\\\u0000"]}'),
        ({"text": "ok", "colour": "blue"}, "colour", "blue"),
    ],
)
def test_a_field_that_is_wrong(memory: Memory, body: Any, key: str, value: Any) -> None:
    assert named(refused(memory, "POST", "/documents", 422, json=body)) == (key, value)


@pytest.mark.parametrize("key", ["question", "answer"])
def test_a_pair_that_is_too_long_to_be_learnt(memory: Memory, key: str) -> None:
    """Within the characters allowed: the base model's tokenizer takes digits one by one."""
    pairs = [{"question": "Who?", "answer": "Zorv"}, {"question": "Who?", "answer": "Zorv", key: "7" * 2000}]
    problem = refused(memory, "POST", "/documents", 422, json={"text": "ok", "qa": pairs})
    assert named(problem) == (f"qa.1.{key}", "2000 tokens")


def test_rank_7_is_told_the_ranks_that_are_allowed(memory: Memory) -> None:
    problem = refused(memory, "POST", "/documents", 422, json={"text": "ok", "training": {"rank": 7}})
    assert all(str(rank) in problem["allowed"] for rank in (8, 16, 32, 64))


def test_what_the_engine_cannot_serve_is_refused_with_the_reason(memory: Memory) -> None:
    dora = {"text": "ok", "training": {"variant": "dora"}}
    problem = refused(memory, "POST", "/documents", 422, json=dora)
    assert named(problem) == ("training.variant", "dora")
    assert "vLLM has no place for the magnitudes" in problem["detail"]
    wide = {"text": "ok", "training": {"variant": "pissa", "rank": 64}}
    problem = refused(memory, "POST", "/documents", 422, json=wide)
    assert (named(problem), problem["allowed"]) == (("training.rank", 64), "up to 32")


def test_a_mixture_is_a_list_or_joined(make_memory: MakeMemory) -> None:
    memory = make_memory()
    for formats in ("summary8+qa40", ["summary8", "qa40"], "all"):
        body = {"text": f"ok {formats}", "training": {"formats": formats}}
        assert memory.client.post("/documents", json=body).status_code == 202
    twice = {"text": "ok", "training": {"formats": "qa40+qa8"}}
    assert "one number for each kind" in refused(memory, "POST", "/documents", 422, json=twice)["detail"]


@pytest.mark.parametrize("content", [b'{"text": "ok"', b"", b"text", b'{"text": "\xff\xfe"}'])
def test_malformed_json(memory: Memory, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    problem = refused(memory, "POST", "/documents", 400, content=content, headers=headers)
    assert named(problem) == ("body", "malformed")


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type(memory: Memory, media_type: str) -> None:
    headers = {"Content-Type": media_type}
    assert named(refused(memory, "POST", "/documents", 415, content=b"text", headers=headers))[1] == media_type


@pytest.mark.parametrize(
    ("file", "status", "key"),
    [
        (("picture.png", PNG, "image/png"), 415, "file"),
        (("report.pdf", PNG, "application/pdf"), 415, "file"),  # mislabelled
        (("report.txt", make_pdf(["text"]), "text/plain"), 415, "file"),
        (("report.pdf", make_pdf(["text"])[:200], "application/pdf"), 422, "file"),
        (("bomb.docx", with_member(make_docx(), "word/media/x.bin", bytes(4 << 20)), ""), 422, "file"),
        (("notes.txt", b"caf\xe9 \xff\xfe", "text/plain"), 422, "file"),
        (("notes.txt", b"", "text/plain"), 422, "file"),
        (("notes.txt", b" \n ", "text/plain"), 422, "file"),
    ],
    ids=["png", "png as pdf", "pdf as txt", "corrupt pdf", "zip bomb", "latin-1", "empty", "blank"],
)
def test_a_file_that_cannot_be_a_document(memory: Memory, file: tuple[str, bytes, str], status: int, key: str) -> None:
    problem = refused(memory, "POST", "/documents", status, files={"file": file})
    found, value = named(problem)
    assert found == key
    assert file[0] in value or not value.strip()  # the text itself, where that is what is wrong


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"namespace": "Not a name"}, "namespace"),
        ({"training": '{"rank": 7}'}, "training.rank"),
        ({"training": "{"}, "training"),
        ({"metadata": ""}, "metadata"),
        ({"metadata": '{}, "title": "smuggled"'}, "metadata"),
        ({"metadata": "[" * 100_000}, "metadata"),
        ({"metadata": '{"n": NaN}'}, "metadata"),
        ({"qa": "[1]"}, "qa.0"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_form_field_that_is_wrong(memory: Memory, data: dict[str, str], key: str) -> None:
    problem = refused(memory, "POST", "/documents", 422, files={"file": TEXT_FILE}, data=data)
    assert named(problem)[0] == key


def test_a_form_without_a_file_or_with_two(memory: Memory) -> None:
    problem = refused(memory, "POST", "/documents", 422, files={"upload": TEXT_FILE})
    assert problem["key"] == "file"
    two = [("file", TEXT_FILE), ("file", TEXT_FILE)]
    problem = refused(memory, "POST", "/documents", 400, files=two)
    assert named(problem) == ("body", "malformed")
    assert "Too many files" in problem["detail"]


@pytest.mark.parametrize(
    ("parameters", "content"),
    [
        ("", b"--b--"),
        ("; boundary=b", b"no form"),
        ("; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nOrgan\r\n--b--"),
        ("; boundary=b", b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 17 + b"--b--"),
    ],
    ids=["no boundary", "no parts", "no name", "too many fields"],
)
def test_a_malformed_form(memory: Memory, parameters: str, content: bytes) -> None:
    headers = {"Content-Type": f"multipart/form-data{parameters}"}
    problem = refused(memory, "POST", "/documents", 400, content=content, headers=headers)
    assert named(problem) == ("body", "malformed")
    assert "boundary" in problem["allowed"]


def test_a_text_longer_than_allowed(make_memory: MakeMemory) -> None:
    memory = make_memory(max_text_chars=1000)
    assert named(refused(memory, "POST", "/documents", 413, json={"text": HUGE})) == ("text", 3000)


# questions


@pytest.mark.parametrize(
    ("body", "key", "value"),
    [
        ({"mode": "magic"}, "mode", "magic"),
        ({"mode": None}, "mode", None),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": 9}, "top_k", 9),
        ({"top_k": "all"}, "top_k", "all"),
        ({"top_k": 1.5}, "top_k", 1.5),
        ({"top_k": True}, "top_k", True),
        ({"merge": {"method": "average"}}, "merge.method", "average"),
        ({"merge": {"density": 0}}, "merge.density", 0),
        ({"merge": {"density": 0.4}}, "merge.density", 0.4),
        ({"merge": {"sign_method": "total", "seed": 0}}, "merge.sign_method", "total"),
        ({"merge": {"method": "cat", "density": 0.5}}, "merge.density", 0.5),
        ({"merge": {"method": "dare_linear", "sign_method": "total"}}, "merge.sign_method", "total"),
        ({"merge": {"method": "ties", "seed": 3}}, "merge.seed", 3),
        ({"merge": {"weights": [1, 2]}}, "merge.weights", "[1, 2]"),
        ({"compose": "blend"}, "compose", "blend"),
        ({"context": "graph"}, "context", "graph"),
        ({"temperature": -1}, "temperature", -1),
        ({"temperature": 2.5}, "temperature", 2.5),
        ({"top_p": 0}, "top_p", 0),
        ({"max_tokens": 0}, "max_tokens", 0),
        ({"max_tokens": 5000}, "max_tokens", 5000),
        ({"seed": -1}, "seed", -1),
        ({"document_ids": []}, "document_ids", "[]"),
        ({"document_ids": ["a\0b"]}, "document_ids.0", "a\0b"),
        ({"metadata": {"year": [1931]}}, "metadata.year", "[1931]"),
        ({"metadata": {'a"b': 1}}, 'metadata.a"b.[key]', 'a"b'),
        ({"namespace": "../etc"}, "namespace", "../etc"),
        ({"question": ""}, "question", ""),
        ({"question": " \n"}, "question", " \n"),
        ({"question": 5}, "question", 5),
        ({"messages": [{"role": "robot", "content": "hi"}], "question": None}, "messages.0.role", "robot"),
        ({"messages": [{"role": "user", "content": " "}], "question": None}, "messages.0.content", " "),
        ({"messages": [{"role": "system", "content": ""}], "question": None}, "messages.0.content", ""),
        ({"history": []}, "history", "[]"),
    ],
)
def test_a_question_that_is_wrong(taught: Memory, body: Any, key: str, value: Any) -> None:
    problem = refused(taught, "POST", "/query", 422, json={"question": QUESTION, "mode": "lora", **body})
    assert named(problem) == (key, value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", ["temperature", "top_p"])
def test_numbers_that_are_none(memory: Memory, number: str, key: str) -> None:
    content = f'{{"question": "Why?", "{key}": {number}}}'
    headers = {"Content-Type": "application/json"}
    problem = refused(memory, "POST", "/query", 422, content=content, headers=headers)
    assert named(problem)[0] == key


@pytest.mark.parametrize("digits", [20, 400, 5000])
@pytest.mark.parametrize("path", ["/query", "/v1/chat/completions"])
def test_a_number_of_many_digits(memory: Memory, path: str, digits: int) -> None:
    content = f'{{"question": "Why?", "max_tokens": {"9" * digits}}}'
    reply = memory.client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 422)


@pytest.mark.parametrize("content", [b'{"question":', b'{"question": "\xff\xfe"}', b"[" * 100_000])
def test_malformed_question(memory: Memory, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    problem = refused(memory, "POST", "/query", 400, content=content, headers=headers)
    assert named(problem) == ("body", "malformed")


def test_a_question_that_is_no_utf_8_is_told_so(memory: Memory) -> None:
    headers = {"Content-Type": "application/json"}
    content = '{"question": "Größe?"}'.encode("latin-1")
    assert "UTF-8" in refused(memory, "POST", "/query", 400, content=content, headers=headers)["detail"]


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}], ids=["untyped", "text"])
def test_a_question_that_is_not_said_to_be_json(memory: Memory, headers: dict[str, str]) -> None:
    content = json.dumps({"question": QUESTION, "mode": "base"}).encode()
    problem = refused(memory, "POST", "/query", 415, content=content, headers=headers)
    assert named(problem) == ("Content-Type", headers.get("Content-Type", "(missing)"))


@pytest.mark.parametrize(
    "body", [{}, {"question": "Why?", "messages": [{"role": "user", "content": "Why?"}]}], ids=["neither", "both"]
)
def test_a_question_and_a_conversation_exclude_each_other(memory: Memory, body: Any) -> None:
    assert "either question or messages" in refused(memory, "POST", "/query", 422, json=body)["detail"]


def test_a_conversation_that_ends_with_the_assistant(memory: Memory) -> None:
    body = {"messages": [{"role": "assistant", "content": "Well?"}]}
    assert "role user" in refused(memory, "POST", "/query", 422, json=body)["detail"]


@pytest.mark.parametrize("mode", ["lora", "rag", "icl", "hybrid"])
def test_an_unknown_document(taught: Memory, mode: str) -> None:
    body = {"question": QUESTION, "mode": mode, "document_ids": ["doc_nowhere"]}
    problem = refused(taught, "POST", "/query", 404, json=body)
    assert (problem["key"], problem["value"]) == ("document_ids", "doc_nowhere")


def test_a_document_of_another_namespace_is_unknown(make_memory: MakeMemory) -> None:
    memory = make_memory()
    document_id = memory.teach(namespace="theirs")
    body = {"question": QUESTION, "document_ids": [document_id]}
    assert refused(memory, "POST", "/query", 404, json=body)["value"] == document_id


def test_cat_whose_summed_rank_exceeds_the_engines(make_memory: MakeMemory) -> None:
    memory = make_memory()
    memory.teach(LIGHTHOUSE, rank=32)
    memory.teach(BAKERY, rank=32)
    memory.teach(LIGHTHOUSE.upper(), rank=32)
    body = {"question": QUESTION, "top_k": 3, "compose": "merge", "merge": {"method": "cat"}}
    problem = refused(memory, "POST", "/query", 422, json=body)
    assert named(problem) == ("merge.method", "cat")
    assert "needs rank 96" in problem["detail"]
    answer = memory.ask(mode="lora", top_k=3, compose="merge")  # without a method it is one that fits
    assert answer["merge"]["method"] == "ties"
    assert "64" in problem["allowed"]


@pytest.mark.parametrize("stream", [False, True])
def test_icl_over_the_window(make_memory: MakeMemory, stream: bool) -> None:
    memory = make_memory()
    memory.teach(" ".join(f"Line {n} tells of lamp {n}." for n in range(200)))
    body = {"question": QUESTION, "mode": "icl", "stream": stream}
    problem = refused(memory, "POST", "/query", 422, json=body)
    assert problem["code"] == "window-exceeded"
    assert named(problem) == ("question", f"{problem['prompt_tokens']} tokens")
    assert problem["prompt_tokens"] > 512 - 64
    assert (problem["max_tokens"], problem["window"]) == (64, 512)


# everything else


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/documents/doc_nowhere"),
        ("DELETE", "/documents/doc_nowhere"),
        ("GET", "/jobs/job_nowhere"),
        ("GET", "/jobs/job_nowhere/events"),
        ("POST", "/jobs/job_nowhere/cancel"),
        ("POST", "/jobs/job_nowhere/retry"),
        ("GET", "/adapters/ada_nowhere"),
        ("GET", "/adapters/ada_nowhere/download"),
        ("GET", "/adapters/..%2F..%2Fetc/download"),
    ],
)
def test_what_is_not_there(memory: Memory, method: str, path: str) -> None:
    refused(memory, method, path, 404)


def test_replacing_what_is_not_there(memory: Memory) -> None:
    assert refused(memory, "PUT", "/documents/doc_nowhere", 404, json={"text": "ok"})["value"] == "doc_nowhere"


@pytest.mark.parametrize(
    "path", ["/documents/a%00b", "/jobs/a%00b", "/adapters/a%00b", "/documents?after=%00", "/adapters?document_id=%00"]
)
def test_characters_that_no_database_can_hold(memory: Memory, path: str) -> None:
    assert "\0" in str(named(refused(memory, "GET", path, 422))[1])


@pytest.mark.parametrize("path", ["/documents", "/adapters"])
@pytest.mark.parametrize("limit", ["0", "101", "many"])
def test_a_page_of_a_wrong_length(memory: Memory, path: str, limit: str) -> None:
    assert named(refused(memory, "GET", f"{path}?limit={limit}", 422)) == ("limit", limit)


def test_wrong_methods_and_paths_are_problems_too(memory: Memory) -> None:
    problem = refused(memory, "DELETE", "/jobs/job_nowhere", 405)
    assert (problem["code"], named(problem), problem["allowed"]) == ("method-not-allowed", ("method", "DELETE"), "GET")
    assert memory.client.delete("/jobs/job_nowhere").headers["allow"] == "GET"
    problem = refused(memory, "GET", "/nowhere", 404)
    assert (problem["code"], problem["key"], problem["value"]) == ("not-found", "path", "/nowhere")


def test_half_of_a_surrogate_pair_never_reaches_a_database(memory: Memory) -> None:
    headers = {"Content-Type": "application/json"}
    for path, body in (
        ("/documents", {"text": "ok", "title": "\ud800"}),
        ("/documents", {"text": "\ud800"}),
        ("/query", {"question": "\ud800"}),
        ("/query", {"question": "ok", "document_ids": ["\ud800"]}),
    ):
        content = json.dumps(body).encode()
        reply = memory.client.post(path, content=content, headers=headers)
        assert 400 <= reply.status_code < 500, (path, body, reply.text)
    assert not any(memory.rows().values())
