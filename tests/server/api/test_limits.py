"""Requests that would cost the gateway far more than they cost whoever sends them."""

import asyncio
from typing import Any

import pytest

from loramem.lines import tidy
from server.api import documents
from server.api.errors import shown
from tests.server.api.conftest import MakeMemory
from tests.server.api.memory import QUESTION, Memory
from tests.server.api.test_bad_input import named, refused

MANY = {f"key{n}": 0 for n in range(101)}
ASKED = {"question": QUESTION}


@pytest.fixture(scope="module")
def memory(make_unchanged: MakeMemory) -> Memory:
    return make_unchanged()


def form(charset: str) -> dict[str, Any]:
    """Without a file, which is missed only by what has read it."""
    content = b'--b\r\nContent-Disposition: form-data; name="title"\r\n\r\nOrgan\r\n--b--\r\n'
    return {"content": content, "headers": {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}}


@pytest.mark.parametrize("charset", ["punycode", "undefined", "utf-7", "nowhere"])
def test_a_form_in_another_charset_is_refused_unread(memory: Memory, charset: str) -> None:
    problem = refused(memory, "POST", "/documents", 415, **form(charset))
    assert named(problem) == ("Content-Type", f"charset={charset}")
    assert "utf-8" in problem["allowed"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"us-ascii"'])
def test_a_form_may_say_that_it_is_text_as_ours(memory: Memory, charset: str) -> None:
    assert named(refused(memory, "POST", "/documents", 422, **form(charset)))[0] == "file"


def test_a_text_that_is_far_too_long_is_refused_untidied(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = make_memory(max_text_chars=1000)
    monkeypatch.setattr(documents, "tidy", lambda text: pytest.fail("tidied"))
    assert named(refused(memory, "POST", "/documents", 413, json={"text": "x" * 3001})) == ("text", 3001)


def test_a_text_is_tidied_beside_the_event_loop_and_then_measured(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_a_thread(text: str) -> str:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return tidy(text)

    memory = make_memory(max_text_chars=1000)
    monkeypatch.setattr(documents, "tidy", in_a_thread)
    memory.upload("lamp" + " " * 2900)
    assert named(refused(memory, "POST", "/documents", 413, json={"text": "x" * 1001 + " "})) == ("text", 1001)


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("/query", {**ASKED, **MANY}, "body"),
        ("/query", {**ASKED, "merge": MANY}, "merge"),
        ("/query", {**ASKED, "metadata": MANY}, "metadata"),
        ("/query", {"messages": [MANY]}, "messages.0"),
        ("/documents", {"text": "ok", **MANY}, "body"),
        ("/documents", {"text": "ok", "training": MANY}, "training"),
        ("/documents", {"text": "ok", "qa": [MANY]}, "qa.0"),
    ],
)
def test_an_object_of_many_keys_is_one_error(memory: Memory, path: str, body: Any, key: str) -> None:
    problem = refused(memory, "POST", path, 422, json=body)
    assert named(problem)[0] == key
    assert problem["allowed"] == "must have at most 100 keys"
    assert len(problem["errors"]) == 1


def test_an_object_of_many_keys_is_refused_under_v1_too(memory: Memory) -> None:
    body = {"model": memory.gateway.base.name, "messages": [{"role": "user", "content": "Who?"}], **MANY}
    error = memory.client.post("/v1/chat/completions", json=body).json()["error"]
    assert error["message"] == "body: must have at most 100 keys"


def test_of_many_errors_the_first_twenty_are_told(memory: Memory) -> None:
    body = {**ASKED, **{f"key{n}": 0 for n in range(60)}}
    errors = refused(memory, "POST", "/query", 422, json=body)["errors"]
    assert [error["key"] for error in errors] == [f"key{n}" for n in range(20)]


@pytest.mark.parametrize(
    ("path", "body", "first"),
    [
        ("/query", {"messages": [{}] * 200}, "messages.0."),
        ("/documents", {"text": "ok", "qa": [{}] * 2000}, "qa.0."),
        ("/documents", {"text": "ok", "training": {"formats": ["poem"] * 2000}}, "training.formats.0"),
    ],
)
def test_a_list_is_read_up_to_its_first_error(memory: Memory, path: str, body: Any, first: str) -> None:
    errors = refused(memory, "POST", path, 422, json=body)["errors"]
    assert errors[0]["key"].startswith(first)
    assert len(errors) <= 2


def test_a_key_is_cut_as_a_value_is(memory: Memory) -> None:
    problem = refused(memory, "POST", "/query", 422, json={**ASKED, "k" * 5000: 0})
    assert problem["key"] == "k" * 120 + "…"
    assert len(problem["detail"]) < 200


def test_a_value_is_written_out_no_further_than_it_is_shown() -> None:
    class Unread:
        def __str__(self) -> str:
            raise AssertionError

    assert shown(["x" * 200, Unread()]) == '["' + "x" * 118 + "…"
