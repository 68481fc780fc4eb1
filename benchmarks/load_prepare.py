"""The documents that a load asks about: uploaded, learnt, waited for until nothing trains, and deleted again."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load_documents import TRAINING, Synthetic
from benchmarks.passages import follow
from benchmarks.recall_ask import bar
from loramem.client import Client, ClientError

AT_WORK = ("queued", "running")
POLL_S = 1.0
IDLE_S = 3600.0


class NotIdle(SystemExit):
    """Jobs of somebody else, or mendings, did not end in time; a load beside them would measure them."""


@contextmanager
def documents_at(client: Client, texts: Sequence[Synthetic], *, keep: bool) -> Iterator[list[str]]:
    """Their ids on the server, in order, all live. Those that were there before are used, and left.

    All are uploaded before the first job is waited for, so that the queue is full. Raises `NotLearnt`.
    """
    ids, jobs, new = list[str](), list[str](), list[str]()
    try:
        for text in bar(texts, "uploading"):
            accepted = client.upload(text.text, title=text.title, external_id=text.external_id, training=TRAINING)
            ids.append(accepted["document"]["id"])
            jobs.append(accepted["job"]["id"])
            if accepted["created"]:
                new.append(ids[-1])
        for job in bar(jobs, "learning"):
            follow(client, job)
        yield ids
    finally:
        if not keep:
            _delete(client, new)


def _delete(client: Client, documents: Sequence[str]) -> None:
    try:
        for document in bar(documents, "deleting"):
            client.delete(document)
    except ClientError as error:  # a server that is gone did not answer either, which the report says
        print(f"documents may be left: {error}", file=sys.stderr)


def await_idle(url: str, api_key: str | None, transport: httpx.BaseTransport | None = None) -> None:
    """Until no job is queued or running, whoever's: weak adapters are mended by jobs that nobody asked for.

    Raises `NotIdle`, and `httpx.HTTPError` when `/metrics` cannot be read.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    deadline, said = time.monotonic() + IDLE_S, -1
    with httpx.Client(base_url=url, headers=headers, transport=transport) as http:
        while count := jobs_at_work(http.get("/metrics").raise_for_status().text):
            if time.monotonic() > deadline:
                raise NotIdle(f"{count} jobs are queued or running after {IDLE_S:g} s: wait for them, or cancel them")
            if count != said:
                print(f"waiting for {count} jobs", file=sys.stderr)
                said = count
            time.sleep(POLL_S)


def jobs_at_work(exposition: str) -> int:
    """By the gateway's metrics. Raises `ValueError` for metrics that do not say."""
    families = text_string_to_metric_families(exposition)
    states = {
        one.labels["state"]: one.value for family in families for one in family.samples if one.name == "loramem_jobs"
    }
    if missing := [state for state in AT_WORK if state not in states]:
        raise ValueError(f"/metrics has no loramem_jobs of state {', '.join(missing)}")
    return int(sum(states[state] for state in AT_WORK))
