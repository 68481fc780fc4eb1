"""A worker process for tests of crashes: `python worker_process.py DATABASE_URL JOURNAL STEPS HANG_AFTER_S [UNTIL]`.

Its build works for STEPS steps and publishes by growing a counter, in one transaction with the end of its job. The
journal gets a line at the start of each build, and one before it publishes. With UNTIL each step lasts until there is
such a file.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from loramem import database as database_module
from loramem.database import Database
from loramem.doorbell import PollingDoorbell
from loramem.queue import Claim, JobQueue
from loramem.records import Progress
from loramem.settings import Settings
from loramem.tables import Namespace
from trainer_worker.consume import consume
from trainer_worker.lease import Lease

STEP_S = 0.1


def main(url: str, journal: str, steps: str, hang_after_s: str, until: str = "") -> None:
    database_module.IDLE_IN_WRITE_S = 1.0  # for one that is frozen in a transaction
    database = Database(url)
    settings = Settings(lease_s=1, heartbeat_s=0.3, hang_after_s=float(hang_after_s), poll_s=0.1, max_attempts=3)
    queue = JobQueue(database, PollingDoorbell(settings.poll_s), settings)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def build(claim: Claim, lease: Lease) -> None:
        note(Path(journal), f"start {os.getpid()} {claim.fence}")
        for step in range(int(steps)):
            lease.progress(Progress(phase="train", step=step, total_steps=int(steps)))
            time.sleep(STEP_S)
            while until and not Path(until).exists():
                time.sleep(STEP_S)
        note(Path(journal), f"publish {os.getpid()} {claim.fence}")
        with database.write() as session:
            namespace = session.get_one(Namespace, "published", with_for_update=True)
            namespace.generation += 1
            queue.succeed(session, claim)

    consume(queue, build, settings, stop)
    note(Path(journal), f"end {os.getpid()}")


def note(journal: Path, line: str) -> None:
    with journal.open("a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
