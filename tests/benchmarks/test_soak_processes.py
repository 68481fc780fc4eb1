"""The reader of /proc, on this process and children of its own."""

import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

import pytest

from benchmarks import soak_processes
from benchmarks.soak_processes import Process, Sample, Watch, environment_of, is_lasting, name_of, read_sample, tree

MIB = 1 << 20
GROWING = """
import sys, tempfile, threading
print("begun", flush=True)
sys.stdin.readline()
event = threading.Event()
for _ in range(3):
    threading.Thread(target=event.wait, daemon=True).start()
files = [tempfile.TemporaryFile() for _ in range(2)]
block = bytearray(b"x" * (64 << 20))
print("grown", flush=True)
sys.stdin.readline()
"""
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"


def me() -> Process:
    return next(process for process in tree([os.getpid()]) if process.pid == os.getpid())


def sample() -> Sample:
    found = read_sample(me(), 0.0)
    assert found is not None
    return found


def sample_of(child: "subprocess.Popen[str]") -> Sample:
    """Once it has said that it is there."""
    assert child.stdout is not None
    assert child.stdout.readline()
    (process,) = tree([child.pid])
    found = read_sample(process, 0.0)
    assert found is not None
    return found


def test_memory_files_and_threads_of_a_process_are_seen() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", GROWING], stdin=pipe, stdout=pipe, text=True) as child:
        before = sample_of(child)
        assert child.stdin is not None
        print(file=child.stdin, flush=True)
        after = sample_of(child)
        child.stdin.close()
    assert after.threads - before.threads == 3
    assert after.files - before.files == 2
    for grown in (after.anonymous_bytes - before.anonymous_bytes, after.rss_bytes - before.rss_bytes):
        assert 63 * MIB < grown < 80 * MIB


def test_pages_of_a_mapped_file_are_not_what_the_process_filled() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * (64 * MIB))
        file.flush()
        before = sample()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert sum(mapped[:: mmap.PAGESIZE]) > 0
            after = sample()
    assert after.rss_bytes - before.rss_bytes > 63 * MIB
    assert after.anonymous_bytes - before.anonymous_bytes < 16 * MIB


@contextmanager
def child_with_child() -> Iterator["subprocess.Popen[bytes]"]:
    """Ended by the end of its input, which the grandchild reads."""
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        while len(tree([process.pid])) < 2:
            assert process.poll() is None
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def test_children_and_their_children_are_found() -> None:
    with child_with_child() as process:
        found = tree([process.pid])
        assert found[0].pid == process.pid
        assert {one.pid for one in found} <= {one.pid for one in tree([os.getpid()])}
        assert os.getpid() not in {one.pid for one in found}
    assert tree([process.pid]) == []


def test_a_watch_keeps_those_that_stay_apart_from_those_that_come_and_go() -> None:
    watch = Watch([os.getpid()])
    watch.look()
    with child_with_child() as process:
        watch.look()
    watch.look()
    assert len(watch.looks) == 3
    assert [one.pid for one in watch.steady()] == [os.getpid()]
    assert process.pid in {one.pid for one in watch.samples}
    (samples,) = watch.steady().values()
    assert 0 <= samples[0].at_s < samples[1].at_s < samples[2].at_s
    assert watch.ended() == []


def test_a_program_that_ended_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway is started again with another number; a parser was there at first and is not missed."""
    gateway, trainer, parser = Process(2, 5, "gateway"), Process(3, 5, "trainer"), Process(4, 6, "python")
    looks = iter([[gateway, trainer, parser], [trainer, Process(9, 70, "gateway")]])
    monkeypatch.setattr(soak_processes, "tree", lambda _: next(looks))
    monkeypatch.setattr(soak_processes, "read_sample", lambda _, at_s: Sample(at_s, 1, 1, 1, 1))
    watch = Watch([1])
    for _ in repeat(None, 2):
        watch.look()
    assert watch.ended() == [gateway]
    assert list(watch.steady()) == [trainer]


def test_a_process_that_is_gone_has_no_sample() -> None:
    with child_with_child() as process:
        (root, _) = tree([process.pid])
    assert read_sample(root, 0.0) is None


def test_the_environment_is_that_of_the_start() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import os; os.environ['A'] = 'later'; print(flush=True); input()"],
        env={"A": "b=c", "EMPTY": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline()
        found = environment_of(child.pid)
        child.stdin.close()
    assert found == {"A": "b=c", "EMPTY": ""}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/x/bin/python", "/x/bin/loramem", "serve", "--stop-with-parent"], "supervisor"),
        (["python", "-m", "loramem.supervise", "server", "17"], "gateway"),
        (["python", "-m", "loramem.supervise", "trainer_worker", "17"], "trainer"),
        (["python", "-m", "server"], "gateway"),
        (["python", "-m", "trainer_worker"], "trainer"),
        (["VLLM::EngineCore  "], "VLLM::EngineCore"),
        (["python", "-B", "-c", "from multiprocessing.resource_tracker import main;main(35)"], "python"),
        (["python", "-m", "json.tool"], "python"),
        ([""], "python"),
    ],
)
def test_programs_are_told_by_what_they_run(arguments: list[str], name: str) -> None:
    assert name_of(arguments, "python") == name
    assert is_lasting(Process(1, 1, name)) == (name != "python")
