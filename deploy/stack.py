"""The processes of docker-compose.yml without containers: `python -m deploy.stack up --home FOLDER`.

Each service is started by its own command in its own environment, as docker-compose.yml has them; only host names,
ports and paths are replaced (see `stack_local`). Variables come from the environment and from .env. A service whose
program is not installed is left out and named, unless gateway or trainer need it. Not done: limits, networks of their
own, restarts; a service that ends takes the others with it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from dotenv import dotenv_values
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from deploy.stack_compose import Service, StackError, load
from deploy.stack_local import Localiser, Process, prepare, program

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.2
PROBE_S = 10.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopAsked(Exception):
    """A signal asked this process to end."""


@dataclass
class Running:
    process: Process
    child: "subprocess.Popen[bytes]"
    log: Path

    @property
    def name(self) -> str:
        return self.process.service.name

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.process.port}"


@dataclass
class Stack:
    """Starts services one after another, each when those before it are healthy, and stops them in reverse."""

    home: Path
    running: list[Running] = field(default_factory=list)

    def start(self, process: Process) -> None:
        """Returns when it is healthy. Raises `StackError` with the end of its log when it is not in time, or ends."""
        prepare(process)
        log = self.home / "logs" / f"{process.service.name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            child = subprocess.Popen(
                [*process.run_as, *process.command],
                env=process.environment,
                cwd=process.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C is for us alone: we stop them in order
            )
        self.running.append(Running(process, child, log))
        self._wait_healthy(self.running[-1])

    def check(self) -> None:
        """Raises `StackError` when a service has ended."""
        for each in self.running:
            if (status := each.child.poll()) is not None:
                raise StackError(f"{each.name} ended with status {status}:\n{_tail(each.log)}")

    def stop(self) -> None:
        while self.running:
            each = self.running.pop()
            if each.child.poll() is None:
                each.child.send_signal(signal.Signals[each.process.service.stop_signal])
            try:
                each.child.wait(each.process.service.stop_grace_s)
            except subprocess.TimeoutExpired:
                print(f"{each.name} did not stop in time; killing it", file=sys.stderr)
                os.killpg(each.child.pid, signal.SIGKILL)
                each.child.wait()

    def _wait_healthy(self, started: Running) -> None:
        deadline = time.monotonic() + started.process.service.health_wait_s
        while not healthy(started.process):
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{started.name} is not healthy:\n{_tail(started.log)}")
            time.sleep(POLL_S)


def healthy(process: Process) -> bool:
    """One run of the health command; of `wget` and `valkey-cli`, where they are not installed, what they would do."""
    command = process.health[0]
    if shutil.which(command, path=process.environment["PATH"]):
        return _succeeds(process)
    if command == "wget":
        return _answers(process.health[-1])
    if command == "valkey-cli":
        return _pings(process.port)
    raise StackError(f"{process.service.name}: its health command {command!r} is not installed")


def plan(
    services: Sequence[Service], available: Sequence[str], only: Sequence[str]
) -> tuple[list[Service], list[Service]]:
    """What to start and what to leave out: `only` and all that they need, or everything whose program is there.

    Raises `StackError` for a name that is no service and for a program that is missing and needed.
    """
    named = {service.name: service for service in services}
    if unknown := sorted(set(only) - set(named)):
        raise StackError(f"no such service in this profile: {', '.join(unknown)}; there are {', '.join(named)}")
    wanted = needed = _closure(named, only or [name for name, service in named.items() if service.built])
    if not only:
        wanted = set(named)
    missing = [service for service in services if service.name in wanted and service.name not in available]
    for service in missing:
        if service.name in needed:
            raise StackError(f"{service.name} needs the program {program(service)!r}, which is not installed")
    left_out = {service.name for service in missing}
    return [service for service in services if service.name in wanted - left_out], missing


def up(options: argparse.Namespace) -> None:
    """Start, say where everything is, and wait until a signal comes or a service ends."""
    variables = {key: value for key, value in dotenv_values(options.env_file).items() if value is not None}
    variables |= os.environ
    profile = options.profile or variables.get("COMPOSE_PROFILES") or "cpu"
    services = load(ROOT / "docker-compose.yml", profile, variables)
    home = Path(options.home).expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    localiser = Localiser(services, ROOT, home, variables)
    available = [service.name for service in services if localiser.available(service)]
    chosen, left_out = plan(services, available, options.only)
    stack = Stack(home)
    try:
        for service in left_out:
            print(f"{service.name} is left out: {program(service)!r} is not installed", file=sys.stderr)
        for service in chosen:
            print(f"starting {service.name}", file=sys.stderr)
            stack.start(localiser.process(service))
        _announce(stack, left_out, options.json)
        while True:
            stack.check()
            time.sleep(POLL_S)
    finally:
        stack.stop()


def main() -> None:
    options = _options()
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        up(options)
    except StopAsked:
        print("stopped", file=sys.stderr)
    except StackError as error:
        sys.exit(f"stack: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.stack", description=__doc__.partition("\n")[0])
    command = parser.add_subparsers(required=True).add_parser("up", help="start everything and stay in the foreground")
    command.add_argument("--home", required=True, help="folder for all data, made if it is not there")
    command.add_argument("--profile", help="gpu or cpu; default: COMPOSE_PROFILES, else cpu")
    command.add_argument("--env-file", default=ROOT / ".env", type=Path, help="default: .env beside docker-compose.yml")
    command.add_argument("--only", action="append", default=[], metavar="SERVICE", help="this one and what it needs")
    command.add_argument(
        "--json", action="store_true", help="when all is ready, print one JSON object instead of lines"
    )
    return parser.parse_args()


def _announce(stack: Stack, left_out: Sequence[Service], as_json: bool) -> None:
    if as_json:
        services = {
            each.name: {"address": each.address, "pid": each.child.pid, "log": str(each.log)} for each in stack.running
        }
        print(json.dumps({"services": services, "left_out": [service.name for service in left_out]}), flush=True)
        return
    for each in stack.running:
        print(f"{each.name:<12} {each.address}", flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # the first is enough: services are being stopped in order
    raise StopAsked


def _closure(services: dict[str, Service], names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            open_names += services[name].needs
    return found


def _succeeds(process: Process) -> bool:
    try:
        done = subprocess.run(
            process.health,
            env=process.environment,
            cwd=process.folder,
            capture_output=True,
            timeout=PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_S) as reply:
            return bool(reply.status == 200)
    except OSError:  # refused, timed out, or an error status: asked again soon
        return False


def _pings(port: int) -> bool:
    with Redis(host="127.0.0.1", port=port, socket_timeout=PROBE_S, retry=Retry(NoBackoff(), 0)) as redis:
        try:
            return bool(redis.ping())
        except RedisError:
            return False


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


if __name__ == "__main__":
    main()
