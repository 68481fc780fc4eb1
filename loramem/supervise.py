"""Keeps gateway and worker running: starts, watches, restarts and stops them, and leaves no process behind.

    loramem serve ─┬─ python -m loramem.supervise server PARENT ── engine, parsers, ...
                   └─ python -m loramem.supervise trainer_worker PARENT

Each program leads a process group of its own. When one dies, its whole group is killed before it is started again,
since an engine can outlive a killed gateway and hold its memory; what left the group is found too, because on Linux
orphans are handed to this process (subreaper). When this process dies, however it dies, the programs get SIGTERM.
On other systems than Linux the last two do not hold.
"""

import atexit
import ctypes
import gc
import logging
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loramem.errors import SettingsError

if TYPE_CHECKING:
    from loramem.settings import Settings

log = logging.getLogger(__name__)

EXIT_WRONG_SETTINGS = 78
"""EX_CONFIG of sysexits.h: a start that would fail the same way again."""

PROBE_EVERY_S = 0.5
SPIN_COUNT = "10000"
"""Of `GOMP_SPINCOUNT`: how long OpenMP's threads spin at a barrier. Engine and trainer share the cores: one that spins
long takes a core from the other, and one that sleeps at once has lost a fifth of its speed on some. Measured in
`benchmarks/LOG.md`."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Timing:
    first_delay_s: float = 1
    longest_delay_s: float = 30
    healthy_after_s: float = 60  # a run this long starts the delays afresh
    grace_s: float = 40  # from SIGTERM to SIGKILL; the gateway gives its streams 30
    poll_s: float = 0.1


class Program:
    """A module run as `python -m`: its process, or the time of its next start."""

    def __init__(self, name: str, module: str, timing: Timing, waits_for: str = "") -> None:
        """`waits_for`: a URL that has to answer before each start."""
        self.name = name
        self._waits_for = waits_for
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.next_start_at = 0.0
        self._module = module
        self._timing = timing
        self._delay_s = timing.first_delay_s

    def is_due(self) -> bool:
        if self.process is not None or time.monotonic() < self.next_start_at:
            return False
        if self._waits_for and not _answers(self._waits_for):
            self.next_start_at = time.monotonic() + PROBE_EVERY_S
            return False
        return True

    def start(self) -> None:
        command = [sys.executable, "-m", "loramem.supervise", self._module, str(os.getpid())]
        environment = {"GOMP_SPINCOUNT": SPIN_COUNT, **os.environ}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, process_group=0)
        self.started_at = time.monotonic()
        log.info("started %s as process %d", self.name, self.process.pid)

    def ended(self, exit_code: int) -> float:
        """Note the end and set the next start; gives the delay in seconds."""
        assert self.process is not None
        self.process.returncode = exit_code  # reaped by us, so that Popen need not look for it
        self.process = None
        now = time.monotonic()
        if now - self.started_at >= self._timing.healthy_after_s:
            self._delay_s = self._timing.first_delay_s
        delay_s, self._delay_s = self._delay_s, min(self._delay_s * 2, self._timing.longest_delay_s)
        self.next_start_at = now + delay_s
        return delay_s


class Supervisor:
    """Runs in the main thread of a process that starts no other children. `run` returns the exit status."""

    def __init__(self, programs: Sequence[Program], timing: Timing, ready_url: str = "", welcome: str = "") -> None:
        self._programs = programs
        self._timing = timing
        self._ready_url = ready_url  # answers 200 when the first program is ready
        self._welcome = welcome
        self._ready_process: subprocess.Popen[bytes] | None = None
        self._probe_at = 0.0
        self._stop_signals = 0
        self._exit_code = 0

    def run(self) -> int:
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_stop_signal)
        _adopt_orphans()
        try:
            while not (self._stop_signals or self._exit_code):
                self._start_due()
                self._reap()
                self._announce()
                time.sleep(self._timing.poll_s)
        finally:
            self._stop()
        return self._exit_code

    def _on_stop_signal(self, number: int, frame: object) -> None:
        self._stop_signals += 1

    def _start_due(self) -> None:
        for program in self._programs:
            if program.is_due():
                program.start()

    def _reap(self) -> None:
        while pid := _dead_child():
            program = next((each for each in self._programs if each.process and each.process.pid == pid), None)
            if program:
                _signal_group(pid, signal.SIGKILL)  # before its leader is reaped, so the number is surely its own
            _, status = os.waitpid(pid, 0)
            if program:
                self._kill_strays()
                self._report(program, os.waitstatus_to_exitcode(status))

    def _report(self, program: Program, exit_code: int) -> None:
        ran_s = time.monotonic() - program.started_at
        delay_s = program.ended(exit_code)
        how = f"exit status {exit_code}" if exit_code >= 0 else signal.Signals(-exit_code).name
        if self._stop_signals or self._exit_code:
            log.info("%s ended (%s)", program.name, how)
        elif exit_code == EXIT_WRONG_SETTINGS:
            log.error("%s refused its settings, see above; stopping everything", program.name)
            self._exit_code = exit_code
        else:
            log.error("%s ended (%s) after %.1f s; starting it again in %.3g s", program.name, how, ran_s, delay_s)

    def _announce(self) -> None:
        """Say once per process of the first program that it is ready, and after how long."""
        program, now = self._programs[0], time.monotonic()
        process = program.process
        if not self._ready_url or process in (None, self._ready_process) or now < self._probe_at:
            return
        self._probe_at = now + PROBE_EVERY_S
        if _answers(self._ready_url):
            self._ready_process = process
            print(
                f"{program.name} is ready after {time.monotonic() - program.started_at:.1f} s: {self._welcome}",
                flush=True,
            )

    def _stop(self) -> None:
        """SIGTERM, wait for the grace period or a second signal, SIGKILL, and leave when no child is left."""
        seen, deadline = self._stop_signals, time.monotonic() + self._timing.grace_s
        log.info("stopping")
        for process in self._running():
            os.kill(process.pid, signal.SIGTERM)  # not terminate(), which may reap it unseen
        while self._running() and time.monotonic() < deadline and self._stop_signals == seen:
            self._reap()
            time.sleep(self._timing.poll_s)
        for process in self._running():
            log.warning("process %d did not stop in time; killing it", process.pid)
            _signal_group(process.pid, signal.SIGKILL)
        while self._running():
            self._reap()
            time.sleep(0.01)
        self._kill_strays()

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [program.process for program in self._programs if program.process]

    def _kill_strays(self) -> None:
        """Kill and reap every child that is no program: orphans of a program that died. Theirs come to us in turn."""
        while strays := _children() - {process.pid for process in self._running()}:
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                level = logging.INFO if self._stop_signals else logging.WARNING
                log.log(level, "killed process %d, left behind by its parent", pid)


def serve(settings: "Settings", stop_with_parent: bool = False) -> int:
    """Run gateway and worker until SIGTERM, SIGINT or SIGHUP; returns the exit status.

    Raises `SettingsError` when the address cannot be bound or the data folder cannot be written.
    """
    if stop_with_parent:
        _die_with(os.getppid())
    check_address(settings.host, settings.port)
    check_home(settings.home_path)
    url = settings.gateway_url
    print(f"starting gateway and worker; data folder {settings.home_path}", flush=True)
    timing = Timing()
    # On a GPU the engine measures the free memory while it starts: what the trainer took would count as its own.
    waits_for = f"{url}/readyz" if shutil.which("nvidia-smi") else ""
    programs = (Program("gateway", "server", timing), Program("worker", "trainer_worker", timing, waits_for))
    welcome = f"{url} (interactive description at {url}/docs, data in {settings.home_path})"
    return Supervisor(programs, timing, f"{url}/readyz", welcome).run()


def check_address(host: str, port: int) -> None:
    """Raise `SettingsError` unless a socket can be bound there now."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SettingsError(
            f"loramem: cannot listen on {host}:{port} ({error.strerror or error}). "
            "Stop the program that does, or set LORAMEM_HOST and LORAMEM_PORT to a free address of this machine."
        ) from None


def check_home(home: Path) -> None:
    """Make the data folder; raise `SettingsError` when it cannot be written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        writable = os.access(home, os.W_OK | os.X_OK)
    except OSError as error:
        raise SettingsError(f"loramem: LORAMEM_HOME={str(home)!r} cannot be made: {error.strerror}") from None
    if not writable:
        raise SettingsError(f"loramem: LORAMEM_HOME={str(home)!r} cannot be written; name a folder that can")


def _answers(url: str) -> bool:
    """Asked directly, whatever proxy the environment names: it is our own gateway."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):  # refused, timed out, not ready (503) or no HTTP: asked again soon
        return False


def _dead_child() -> int | None:
    """Process id of a child that ended and waits to be reaped."""
    try:
        dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return dead.si_pid if dead else None


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        log.debug("process group %d is gone", pid)


def _children() -> set[int]:
    """Children of this process, ended ones included; empty where there is no /proc."""
    children = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = entry.read_text().rpartition(")")[2].split()[1]  # the name before it may hold any character
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
        if int(parent) == os.getpid():
            children.add(int(entry.parent.name))
    return children


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with(parent_pid: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent is gone, also when that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:  # gone before the call above
        sys.exit(f"loramem: the supervisor, process {parent_pid}, is gone")


def end_without_collecting() -> None:
    """Have this process end without a last search for garbage: among all that PyTorch and vLLM define it takes seconds,
    and the system takes the memory back anyway."""
    atexit.register(gc.freeze)


def run_program(module: str, parent_pid: int) -> None:
    """Be `python -m module`, tied to the supervisor, with an exit status of its own for wrong settings."""
    _die_with(parent_pid)
    end_without_collecting()
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG_SETTINGS)


if __name__ == "__main__":
    run_program(sys.argv[1], int(sys.argv[2]))
