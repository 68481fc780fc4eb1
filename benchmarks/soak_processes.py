"""What processes hold, read from /proc: memory, open files, threads. Linux alone."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
PROGRAMS = {"server": "gateway", "trainer_worker": "trainer"}
"""By the module that a process runs."""
KIB = 1024
_PARENT, _STARTED = 1, 19
"""Places in /proc/PID/stat after the name."""


@dataclass(frozen=True)
class Process:
    """`started` in ticks since the machine's start: with it a number that is used again is another process."""

    pid: int
    started: int
    name: str


@dataclass(frozen=True)
class Sample:
    """`anonymous_bytes` is memory that the process filled itself; `rss_bytes` has the pages of mapped files too."""

    at_s: float
    rss_bytes: int
    anonymous_bytes: int
    files: int
    threads: int


@dataclass
class Watch:
    """Samples of some processes and all that descend from them. `looks`: when it was looked, in seconds."""

    roots: Sequence[int]
    samples: dict[Process, list[Sample]] = field(default_factory=dict)
    looks: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Raises `PermissionError` for processes of another user."""
        at_s = time.monotonic() - self.started
        self.looks.append(at_s)
        for process in tree(self.roots):
            sample = read_sample(process, at_s)
            if sample is not None:
                self.samples.setdefault(process, []).append(sample)

    def steady(self) -> dict[Process, list[Sample]]:
        """Those that were there every time it was looked."""
        return {process: samples for process, samples in self.samples.items() if len(samples) == len(self.looks)}

    def ended(self) -> list[Process]:
        """Programs and parts of the engine that were there at first and are no more."""
        lost = [
            one for one, found in self.samples.items() if found[0].at_s == self.looks[0] and one not in self.steady()
        ]
        return [process for process in lost if is_lasting(process)]


def is_lasting(process: Process) -> bool:
    """A parser, say, comes and goes."""
    return process.name in ("supervisor", *PROGRAMS.values()) or process.name.startswith("VLLM::")


def tree(roots: Iterable[int]) -> list[Process]:
    """Processes that run, by number, and their descendants."""
    every = {process.pid: (process, parent) for process, parent in _processes()}
    wanted = {pid for pid in roots if pid in every}
    while more := {pid for pid, (_, parent) in every.items() if parent in wanted} - wanted:
        wanted |= more
    return [every[pid][0] for pid in sorted(wanted)]


def read_sample(process: Process, at_s: float) -> Sample | None:
    """None when it has ended, or is a zombie."""
    folder = PROC / str(process.pid)
    try:
        lines = (line.partition(":") for line in (folder / "status").read_text().splitlines())
        status = {key: value.split()[:1] for key, _, value in lines}
        files = len(os.listdir(folder / "fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    if "VmRSS" not in status:
        return None
    rss, anonymous, threads = (int(status[key][0]) for key in ("VmRSS", "RssAnon", "Threads"))
    return Sample(at_s, rss * KIB, anonymous * KIB, files, threads)


def environment_of(pid: int) -> dict[str, str]:
    """As it was when the program started. Raises `PermissionError` for a process of another user."""
    entries = (PROC / str(pid) / "environ").read_bytes().decode(errors="replace").split("\0")
    return {name: value for name, equals, value in (entry.partition("=") for entry in entries) if equals}


def name_of(arguments: Sequence[str], command: str) -> str:
    """Of loramem's programs what they are, of the engine's parts the title they took, of others the command."""
    first = arguments[0] if arguments else ""
    if first.startswith("VLLM::"):
        return first.strip()
    if "loramem.supervise" in arguments:
        return PROGRAMS.get(arguments[arguments.index("loramem.supervise") + 1], command)
    if "-m" in arguments:
        return PROGRAMS.get(arguments[arguments.index("-m") + 1], command)
    if "serve" in arguments and any(Path(one).name == "loramem" for one in arguments):
        return "supervisor"
    return command


def _processes() -> Iterable[tuple[Process, int]]:
    """Each with its parent's number."""
    for folder in PROC.glob("[0-9]*"):
        try:
            head, _, rest = (folder / "stat").read_text().rpartition(")")  # the name may hold any character
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
        fields = rest.split()
        command = head.partition("(")[2]
        yield Process(int(folder.name), int(fields[_STARTED]), name_of(arguments, command)), int(fields[_PARENT])
