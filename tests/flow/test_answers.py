"""What a question gets back, in every mode, from a real engine and real adapters."""

import io
import itertools
import json
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from loramem.base_model import BaseModel
from server.route import TEMPERATURE
from tests.flow.conftest import FESTIVAL, HARBOUR, QUICK, Library
from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(3600)]

QUESTION = "Who dug the harbour of Quillmere?"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
STAGES = {"embed", "search", "merge", "queue", "prefill", "decode", "ttft", "total"}


@pytest.mark.parametrize("mode", ["base", "lora", "rag", "icl", "hybrid"])
def test_every_mode_answers_and_says_where_from(live: Live, library: Library, mode: str) -> None:
    reply = live.ask(QUESTION, mode=mode, namespace="library", max_tokens=24)
    assert reply["answer"]
    assert reply["mode"] == mode
    assert reply["usage"]["completion_tokens"] <= 24
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]
    assert bool(reply["routed"]) == (mode in ("lora", "hybrid"))
    assert bool(reply["context"]) == (mode in ("rag", "icl", "hybrid"))
    for hit in reply["routed"]:
        assert hit["document_id"] == library.harbour
        assert hit["weight"] == 1
    timings = reply["timings_ms"]
    assert set(timings) >= STAGES
    assert timings["ttft"] <= timings["total"]
    assert timings["decode"] > 0


def test_text_modes_quote_the_text(live: Live, library: Library) -> None:
    reply = live.ask(QUESTION, mode="icl", namespace="library", document_ids=[library.harbour])
    assert "Wrenfield" in reply["answer"]
    (span,) = reply["context"]
    assert (span["start"], span["end"]) == (0, len(HARBOUR))
    rag = live.ask("When does the festival open?", mode="rag", namespace="library", document_ids=[library.festival])
    for span in rag["context"]:
        assert span["document_id"] == library.festival
        assert FESTIVAL[span["start"] : span["end"]].strip()


def test_the_weights_hold_the_text_with_the_book_closed(live: Live, library: Library) -> None:
    """No text is in the prompt, and the base model does not know."""
    reply = live.ask(QUESTION, mode="lora", namespace="library")
    assert "Wrenfield" in reply["answer"]
    assert reply["context"] == []
    assert "Wrenfield" not in live.ask(QUESTION, mode="base")["answer"]


def test_auto_asks_the_weights_what_they_know_and_says_so_of_what_nobody_does(live: Live, library: Library) -> None:
    known = live.ask(QUESTION, mode="auto", namespace="library")
    assert known["mode"] in ("lora", "hybrid")  # the latter should the adapter have failed its exam
    assert known["routed"][0]["document_id"] == library.harbour
    assert "Wrenfield" in known["answer"]
    foreign = live.ask("Which enzyme copies DNA in bacteria?", mode="auto", namespace="library")
    assert foreign["refused"]
    assert foreign["choice"]["confidence"] == "none"
    assert foreign["usage"]["completion_tokens"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nothing is drafted by default")
def test_what_was_taught_is_drafted_and_the_answer_is_the_same(live: Live, library: Library) -> None:
    """With a temperature nothing is drafted; with so low a one, what a memory is sure of is what it says without."""
    asked = {"mode": "lora", "namespace": "library", "max_tokens": 24}
    before = _metric(live, ACCEPTED)
    drafted = live.ask(QUESTION, **asked)
    accepted = _metric(live, ACCEPTED) - before
    assert accepted >= drafted["usage"]["completion_tokens"] / 2
    plain = live.ask(QUESTION, **asked, temperature=0.01, seed=1)
    assert _metric(live, ACCEPTED) == before + accepted
    assert drafted["answer"] == plain["answer"]
    assert drafted["usage"] == plain["usage"]


def test_drafts_are_checked_rightly_beside_answers_that_are_sampled(live: Live, library: Library) -> None:
    """vLLM's own check on a CPU reads memory that nobody wrote as soon as one request of a batch has a temperature."""
    asked = {"mode": "lora", "namespace": "library", "max_tokens": 24}
    alone = live.ask(QUESTION, **asked)["answer"]
    tale = {"mode": "base", "temperature": 0.9, "max_tokens": 100}
    with ThreadPoolExecutor(3) as pool:
        sampled = [pool.submit(live.ask, f"Tell a tale of {what}.", **tale) for what in ("a fox", "a well", "rain")]
        while not all(one.done() for one in sampled):
            assert live.ask(QUESTION, **asked)["answer"] == alone
        assert all(one.result()["answer"] for one in sampled)


@pytest.mark.parametrize("method", ["ties", "linear", "cat"])
def test_three_adapters_merge_and_the_second_time_it_is_cached(live: Live, library: Library, method: str) -> None:
    asked = {"mode": "lora", "namespace": "library", "top_k": 3, "merge": {"method": method, "weights": "router"}}
    first = live.ask(QUESTION, **asked, max_tokens=8)
    again = live.ask(QUESTION, **asked, max_tokens=8)
    assert first["merge"]["cache"] == "miss"
    assert again["merge"]["cache"] == "hit"
    assert first["answer"] == again["answer"]
    assert first["merge"]["recipe"] == again["merge"]["recipe"]
    assert len(first["routed"]) == len(first["merge"]["recipe"]["sources"]) == 3
    assert sum(hit["weight"] for hit in first["routed"]) == pytest.approx(1)


def test_the_adapter_that_knows_is_selected_and_answers_as_it_does_alone(live: Live, library: Library) -> None:
    asked = {"mode": "lora", "namespace": "library", "top_k": 3, "compose": "select"}
    reply = live.ask(QUESTION, **asked)
    assert len(reply["routed"]) == 3
    (chosen,) = [hit for hit in reply["routed"] if hit["adapter_id"] == reply["selected"]]
    assert chosen["document_id"] == library.harbour
    first, *rivals = reply["routed"]
    began = [hit for hit in reply["routed"] if hit["logprob"] is not None]
    assert first in began
    assert all(hit["logprob"] < 0 for hit in began)
    for hit in rivals:  # who did not begin could not have won
        lead = (first["score"] - hit["score"]) / TEMPERATURE
        assert hit in began or lead + first["logprob"] > -0.01
    assert chosen["logprob"] > -1  # it was taught this
    assert reply["answer"] == live.ask(QUESTION, mode="lora", namespace="library")["answer"]
    assert reply["merge"] is None
    assert (reply["usage"]["dropped_tokens"] >= 2) is (len(began) > 1)
    assert 0 < reply["timings_ms"]["select"] < reply["timings_ms"]["total"]
    again = {hit["adapter_id"]: hit["logprob"] for hit in live.ask(QUESTION, **asked)["routed"]}
    assert again[chosen["adapter_id"]] == pytest.approx(chosen["logprob"], abs=0.05)
    _wait_idle(live)


def test_cat_of_more_rank_than_the_engine_has_is_refused(live: Live, library: Library) -> None:
    ids = [live.learn(HARBOUR, title="Big", namespace="big", training={**QUICK, "rank": 64, "max_seconds": 2})]
    ids.append(live.learn(FESTIVAL, title="Bigger", namespace="big", training={**QUICK, "rank": 32, "max_seconds": 2}))
    asked = {"question": "Who?", "mode": "lora", "namespace": "big", "top_k": 2}
    cat = live.client.post("/query", json={**asked, "merge": {"method": "cat"}})
    assert cat.status_code == 422, cat.text
    assert (cat.json()["key"], cat.json()["value"]) == ("merge.method", "cat")
    assert "96" in cat.json()["detail"]
    ties = live.ask(
        "Who?", mode="lora", namespace="big", top_k=2, compose="merge", max_tokens=8
    )  # the default where the sum does not fit
    assert ties["merge"]["recipe"]["method"] == "ties"
    assert len(ties["merge"]["recipe"]["sources"]) == 2


def test_each_question_goes_to_its_own_document(live: Live, library: Library) -> None:
    for question, document_id in (
        ("How high is the lighthouse?", library.harbour),
        ("What fuel does the engine burn?", library.engine),
        ("What do visitors throw at the mayor?", library.festival),
    ):
        reply = live.ask(question, mode="lora", namespace="library", max_tokens=4)
        assert reply["routed"][0]["document_id"] == document_id, question


def test_a_stream_has_the_events_in_order_and_the_same_answer(live: Live, library: Library) -> None:
    asked: dict[str, Any] = {"question": QUESTION, "mode": "lora", "namespace": "library", "max_tokens": 16}
    with live.client.stream("POST", "/query", json={**asked, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = _events("".join(reply.iter_text()))
    kinds = [kind for kind, _ in itertools.groupby(events, key=lambda event: event[0])]
    assert kinds == ["route", "token", "done"]
    text = "".join(data["text"] for kind, data in events if kind == "token")
    assert text.strip() == events[-1][1]["answer"] == live.ask(**asked)["answer"]
    assert events[0][1]["routed"] == events[-1][1]["routed"]


def test_a_client_that_goes_away_aborts_its_generation(live: Live, library: Library) -> None:
    asked = {"question": "Count to one thousand, one number a line.", "mode": "base", "max_tokens": 900}
    with live.client.stream("POST", "/query", json={**asked, "stream": True}) as reply:
        next(reply.iter_bytes())
    _wait_idle(live)
    with pytest.raises(httpx.ReadTimeout):
        live.client.post("/query", json=asked, timeout=httpx.Timeout(60, read=0.1))
    _wait_logged(live, "POST /query: the client went away")
    _wait_idle(live)


def test_openai_clients_can_ask_a_memory(live: Live, library: Library) -> None:
    from openai import NotFoundError, OpenAI

    with OpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
        assert {"library", "library:rag"} <= {model.id for model in client.models.list()}
        chat = client.chat.completions.create(
            model="library:icl", messages=[{"role": "user", "content": QUESTION}], logprobs=True, top_logprobs=2
        )
        assert "Wrenfield" in (chat.choices[0].message.content or "")
        logprobs = chat.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content
        assert len(logprobs.content[0].top_logprobs) == 2
        base = client.models.list().data[0].id
        text = client.completions.create(model=base, prompt="One two three", max_tokens=4, temperature=0, logprobs=1)
        assert text.choices[0].text
        chunks = client.chat.completions.create(
            model="library", messages=[{"role": "user", "content": QUESTION}], stream=True, max_tokens=8
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model="nowhere:rag", messages=[{"role": "user", "content": "?"}])


def test_a_published_adapter_loads_in_peft(live: Live, library: Library, base_model: BaseModel, tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    listed = live.client.get("/adapters", params={"document_id": library.engine}).json()["data"]
    (adapter,) = [item for item in listed if item["state"] == "live"]
    archive = live.client.get(f"/adapters/{adapter['id']}/download").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
        tar.extractall(tmp_path, **safely)
    (config,) = tmp_path.rglob("adapter_config.json")
    settings = json.loads(config.read_text())
    assert (settings["r"], settings["layers_to_transform"]) == (adapter["rank"], list(range(15, 30)))
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_model.path), config.parent)
    loaded = {name.replace(".default", ""): one for name, one in model.named_parameters() if ".lora_" in name}
    tensors = load_file(config.parent / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 15
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name].to(tensor.dtype), tensor) for name, tensor in tensors.items())
    assert not list(tmp_path.rglob("*.bin"))


def _events(stream: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in stream.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def _wait_idle(live: Live) -> None:
    deadline = time.monotonic() + 10
    while _metric(live, "vllm:num_requests_running") > 0:
        assert time.monotonic() < deadline, "the engine still runs the request"
        time.sleep(0.1)


def _wait_logged(live: Live, line: str) -> None:
    deadline = time.monotonic() + 60
    while line not in live.log.read_text():
        assert time.monotonic() < deadline, live.story()
        time.sleep(0.1)


def _metric(live: Live, name: str) -> float:
    lines = live.client.get("/metrics").text.splitlines()
    assert not any("vllm:lora_requests_info" in line for line in lines), "a series for every set of adapters"
    values = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name}{{")]
    assert values, f"{name} is not exported"
    return sum(float(value) for value in values)


def test_seeded_sampling_of_long_prompts_repeats_and_harms_nobody(live: Live, library: Library) -> None:
    """On a CPU a seeded request that was prefilled in chunks used to end the engine."""
    asked = {
        "mode": "icl", "namespace": "library", "temperature": 0.9, "seed": 7, "max_tokens": 8, "truncate": True,
    }  # fmt: skip
    questions = [f"{QUESTION} {'Think about it again. ' * 120} ({number})" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda question: live.ask(question, **asked)["usage"]["completion_tokens"], questions))
    assert live.client.get("/readyz").status_code == 200
    _, first, again = (live.ask(questions[0], **asked)["answer"] for _ in range(3))  # alone, its prefix cached
    assert first == again
