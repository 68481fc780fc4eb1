"""kill -9 of worker and gateway in mid-training: nothing accepted is lost, nothing is published twice."""

import os
import re
import signal
import sqlite3
from contextlib import closing

import pytest

from tests.flow.conftest import HARBOUR, QUICK, Library
from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(3600)]

QUESTION = "Who dug the harbour of Quillmere?"


def test_worker_and_gateway_are_killed_and_nothing_is_lost_or_published_twice(live: Live, library: Library) -> None:
    question = {"mode": "lora", "namespace": "library"}
    before, jobs, folders = live.ask(QUESTION, **question), _jobs(live), _folders(live)
    document_id, job_id = live.upload(HARBOUR, namespace="killed", training={**QUICK, "max_seconds": 12})
    live.wait_phase(job_id, "train", "examine")
    os.kill(live.child("trainer_worker"), signal.SIGKILL)
    os.kill(live.child("server"), signal.SIGKILL)
    live.wait_ready()
    live.wait_job(job_id)
    assert _claims(live, job_id) > 1, "it was killed too late"
    adapters = live.client.get("/adapters", params={"document_id": document_id}).json()["data"]
    assert [adapter["state"] for adapter in adapters] == ["live"]
    assert _folders(live) - folders == {adapters[0]["id"]}
    after = live.ask(QUESTION, **question)
    assert after["answer"] == before["answer"]
    assert after["routed"] == before["routed"]
    assert _jobs(live) == {**jobs, "succeeded": jobs["succeeded"] + 1}
    assert _engines(live) == 1, "an orphaned engine was left behind"


def _claims(live: Live, job_id: str) -> int:
    """How often a worker took the job up: its attempts begin anew when it gets further."""
    with closing(sqlite3.connect(live.home / "loramem.db")) as connection:
        (fence,) = connection.execute("SELECT fence FROM job WHERE id = ?", (job_id,)).fetchone()
    return int(fence)


def _jobs(live: Live) -> dict[str, float]:
    """How many are in each state."""
    found = re.findall(r'^loramem_jobs\{state="(\w+)"\} (\S+)$', live.client.get("/metrics").text, re.MULTILINE)
    return {state: float(count) for state, count in found}


def _folders(live: Live) -> set[str]:
    return {path.name for path in (live.home / "adapters").glob("ada_*")}


def _engines(live: Live) -> int:
    """Engine processes under this supervisor."""
    parents = {}
    names = {}
    for stat in os.listdir("/proc"):
        if not stat.isdigit():
            continue
        try:
            with open(f"/proc/{stat}/stat") as file:
                fields = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        names[int(stat)] = fields[fields.index("(") + 1 : fields.rindex(")")]
        parents[int(stat)] = int(fields.rsplit(")", 1)[1].split()[1])

    def under(pid: int) -> bool:
        while pid in parents:
            if pid == live.process.pid:
                return True
            pid = parents[pid]
        return False

    return sum(1 for pid, name in names.items() if "EngineCor" in name and under(pid))
