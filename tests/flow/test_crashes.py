"""kill -9 of the worker in mid-training and of the gateway: nothing accepted is lost, nothing is published twice."""

import os
import signal
import time

import pytest

from tests.flow.conftest import HARBOUR, QUICK, Library
from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(600)]

LEASE_S = 6  # of the live server


def test_a_killed_worker_loses_no_job_and_publishes_once(live: Live) -> None:
    document_id, job_id = live.upload(HARBOUR, namespace="killed", training={**QUICK, "max_seconds": 12})
    live.wait_phase(job_id, "train")
    os.kill(live.child("trainer_worker"), signal.SIGKILL)
    killed = time.monotonic()
    while live.job(job_id)["attempts"] < 2:
        assert time.monotonic() - killed < LEASE_S + 10, live.job(job_id)
        time.sleep(0.1)
    live.wait_job(job_id)
    adapters = live.client.get("/adapters", params={"document_id": document_id}).json()["data"]
    assert [adapter["state"] for adapter in adapters] == ["live"]
    folders = [path.name for path in (live.home / "adapters").glob("ada_*")]
    assert adapters[0]["id"] in folders


def test_a_killed_gateway_comes_back_and_answers_without_training(live: Live, library: Library) -> None:
    question = {"question": "Who dug the harbour of Quillmere?", "mode": "lora", "namespace": "library"}
    before = live.client.post("/query", json=question).json()
    jobs = _jobs(live)
    os.kill(live.child("server"), signal.SIGKILL)
    live.wait_ready()
    after = live.client.post("/query", json=question).json()
    assert after["answer"] == before["answer"]
    assert after["routed"] == before["routed"]
    assert _jobs(live) == jobs
    assert _engines(live) == 1, "an orphaned engine was left behind"


def _jobs(live: Live) -> list[str]:
    """How many are in each state."""
    found = [line for line in live.client.get("/metrics").text.splitlines() if line.startswith("loramem_jobs{")]
    assert any(not line.endswith(" 0.0") for line in found), "no job is counted"
    return found


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
