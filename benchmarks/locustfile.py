"""Somebody who uses the memory all day: uploads, asks in every mode, lists, deletes. For Locust.

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000 [--headless -u 4 -t 10m] [--namespace soak]

Run it from the repository's root; the key is LORAMEM_API_KEY. Each user keeps up to three live documents of its own
and names those when it asks. It uploads the next one only when the last is live, so that no more jobs wait than there
are users, and deletes the oldest only when the next is live. One question in ten is about the document that is still
learnt, which may get a 409 that is counted apart; any other status but the expected is a failure. Some questions are
streamed, and some of those are left in the middle. `benchmarks.soak` runs this and watches the server.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from locust import HttpUser, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from requests import RequestException

from benchmarks.load_documents import NAMES, TRAINING, Synthetic, synthesize
from loramem.client import read_events

KEPT = 3
"""Live documents of a user."""
EARLY_SHARE = 0.1
"""Of questions while a document is learnt: they are about that one."""
MODES = ("base", "lora", "rag", "icl", "hybrid", "auto")
STREAMED, LEFT = "streamed", "left"
MAX_TOKENS = 16
STILL_TRAINING = ": 409, still training"
ENDED_BADLY = ("failed", "dead", "cancelled")
PERCENTS = (50, 95, 99)
NUMBERS = count()
"""Of users."""
HOOKS: Any = events
"""Whose methods have no types."""
Json = dict[str, Any]


def endless(seed: int) -> Iterator[Synthetic]:
    for more in count(seed):
        yield from synthesize(NAMES, more)


def add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--namespace", default="soak", help="where the documents are")
    parser.add_argument("--seed", type=int, default=0, help="of the documents and of what is asked")
    parser.add_argument("--result", default="", help="file that gets requests, failures and exceptions as JSON")


def write_at_the_end(environment: Environment, **_: object) -> None:
    """Listens to the last event: Locust's own files may miss what users do while they stop."""
    options = environment.parsed_options
    if options is not None and options.result:
        HOOKS.quit.add_listener(
            lambda **_: Path(options.result).write_text(json.dumps(result_of(environment)), encoding="utf-8")
        )


def result_of(environment: Environment) -> Json:
    """Times in milliseconds, to two digits, as Locust keeps them. `kinds` are those of questions, in their names."""
    entries = environment.stats.entries.values()
    found = environment.stats.errors.values()
    thrown = environment.runner.exceptions.values() if environment.runner else ()
    return {
        "expected": STILL_TRAINING,
        "kinds": [*MODES, STREAMED, LEFT],
        "requests": [
            {
                "method": entry.method,
                "name": entry.name,
                "count": entry.num_requests,
                "failures": entry.num_failures,
                **{f"p{percent}_ms": entry.get_response_time_percentile(percent / 100) for percent in PERCENTS},
                "max_ms": round(entry.max_response_time, 1),
            }
            for entry in entries
        ],
        "errors": [
            {"name": f"{one.method} {one.name}", "error": str(one.error), "count": one.occurrences} for one in found
        ],
        "exceptions": [{"error": one["msg"], "count": one["count"]} for one in thrown],
    }


HOOKS.init_command_line_parser.add_listener(add_options)
HOOKS.init.add_listener(write_at_the_end)


@dataclass
class Document:
    id: str
    job_id: str
    text: Synthetic


class MemoryUser(HttpUser):
    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        self.live: list[Document] = []
        self.learning: Document | None = None
        options: Any = self.environment.parsed_options
        self.namespace = options.namespace
        seed = options.seed + next(NUMBERS) * 1_000_003
        self.texts, self.chance = endless(seed), random.Random(seed)
        key = os.environ.get("LORAMEM_API_KEY")
        if key:
            self.client.headers["Authorization"] = f"Bearer {key}"

    def on_stop(self) -> None:
        if self.learning:
            self._forget(self.learning)
        while self.live:
            self._forget(self.live[0])

    @task(3)
    def upload(self) -> None:
        """The next document, when the last one has been learnt."""
        self._settle()
        if self.learning:
            return
        text = next(self.texts)
        body = {"text": text.text, "title": text.title, "external_id": text.external_id, "training": TRAINING}
        with self.client.post("/documents", json=body | {"namespace": self.namespace}, catch_response=True) as response:
            if _expected(response, 202):
                accepted = response.json()
                self.learning = Document(accepted["document"]["id"], accepted["job"]["id"], text)

    @task(8)
    def ask(self) -> None:
        body, learnt = self._question()
        with self.client.post("/query", json=body, name=f"/query [{body['mode']}]", catch_response=True) as response:
            _answered(response, learnt)

    @task(3)
    def stream(self) -> None:
        """To the end; the time is that of the last event."""
        self._stream(STREAMED, leaves=False)

    @task(1)
    def leave(self) -> None:
        """Go away after the first event, while the answer is being decoded."""
        self._stream(LEFT, leaves=True)

    @task(1)
    def look_around(self) -> None:
        for path, name in ((f"/documents?namespace={self.namespace}", "/documents"), ("/readyz", "/readyz")):
            with self.client.get(path, name=name, catch_response=True) as response:
                _expected(response, 200)
        newest = self.learning or next(reversed(self.live), None)
        if newest:
            self._look_at_job(newest)

    def _look_at_job(self, document: Document) -> None:
        """What cannot be learnt is deleted, so that the next may be uploaded."""
        with self.client.get(f"/jobs/{document.job_id}", name="/jobs/{id}", catch_response=True) as response:
            ended_badly = _expected(response, 200) and response.json()["state"] in ENDED_BADLY
            if ended_badly:
                response.failure(f"the job is {response.json()['state']}")
        if ended_badly:
            self._forget(document)

    def _settle(self) -> None:
        """See whether the document that is learnt is live by now; it then replaces the oldest of `KEPT`."""
        document = self.learning
        if document is None:
            return
        path, name = f"/documents/{document.id}", "/documents/{id}"
        with self.client.get(path, name=name, catch_response=True) as response:
            if not _expected(response, 200) or response.json()["state"] != "live":
                return
        self.learning = None
        self.live.append(document)
        if len(self.live) > KEPT:
            self._forget(self.live[0])

    def _question(self) -> tuple[Json, bool]:
        """A body for `POST /query`, and whether all that it names is known to have been learnt before it is sent."""
        self._settle()
        learning = [self.learning] if self.learning else []
        early = bool(learning) and self.chance.random() < EARLY_SHARE
        known = learning if early else self.live
        if not known:
            return {"question": "Which way is north?", "mode": "base", "max_tokens": MAX_TOKENS}, True
        mode, about = self.chance.choice(MODES), self.chance.choice(known)
        body = {"question": self.chance.choice(about.text.questions), "mode": mode, "max_tokens": MAX_TOKENS}
        if mode == "base":
            return body, True
        named = [about] if mode == "icl" else known
        body |= {"namespace": self.namespace, "document_ids": [document.id for document in named]}
        if mode in ("lora", "hybrid"):
            body |= {"top_k": len(named), "compose": self.chance.choice(("merge", "select"))}
        return body, not early

    def _stream(self, name: str, *, leaves: bool) -> None:
        body, learnt = self._question()
        started = time.perf_counter()
        with self.client.post(
            "/query", json=body | {"stream": True}, name=f"/query [{name}]", stream=True, catch_response=True
        ) as response:
            if not _answered(response, learnt):
                return
            response.encoding = "utf-8"
            try:
                kinds = []
                for event in read_events(response.iter_content(None, decode_unicode=True)):
                    kinds.append(event.kind)
                    if leaves or event.kind in ("done", "error"):
                        break
            except RequestException as error:
                response.failure(f"the stream broke: {type(error).__name__}")
                return
            finally:
                response.close()
            response.request_meta["response_time"] = (time.perf_counter() - started) * 1000
            if not leaves and kinds[-1:] != ["done"]:
                response.failure(f"the stream ended with {kinds[-1] if kinds else 'nothing'}")

    def _forget(self, document: Document) -> None:
        """Whatever the server says, it is not asked again."""
        if document is self.learning:
            self.learning = None
        else:
            self.live.remove(document)
        path, name = f"/documents/{document.id}", "/documents/{id}"
        with self.client.delete(path, name=name, catch_response=True) as response:
            _expected(response, 204)


def _answered(response: Any, learnt: bool) -> bool:
    """Whether it was; what may not be answered yet is no failure, under a name of its own."""
    if response.status_code == 409 and not learnt and _code(response) == "memory-not-ready":
        response.request_meta["name"] += STILL_TRAINING
        response.success()
        return False
    return _expected(response, 200)


def _expected(response: Any, status: int) -> bool:
    if response.status_code == status:
        response.success()
        return True
    reason = type(response.error).__name__ if response.error else _code(response)
    response.failure(f"{response.status_code} {reason}")
    return False


def _code(response: Any) -> str:
    """Of a problem document; of another reply, nothing."""
    try:
        body = response.json()
    except ValueError:
        return ""
    return str(body.get("code", "")) if isinstance(body, dict) else ""
