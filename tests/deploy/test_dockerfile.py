"""The Dockerfile against the linter and against the rest of the repository. No image is built here."""

import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from loramem import __version__
from loramem.supervise import SPIN_COUNT
from tests.rules import PACKAGES, ROOT

TEXT = (ROOT / "Dockerfile").read_text()


@cache
def instructions() -> tuple[str, ...]:
    """One line each, continuations joined, comments gone."""
    plain = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
    return tuple(line.strip() for line in re.sub(r"\\\n\s*", "", plain).splitlines() if line.strip())


@cache
def stages() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for line in instructions():
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[start[2]] = [line]
        elif found:
            found[next(reversed(found))].append(line)
    return {name: tuple(lines) for name, lines in found.items()}


def test_the_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(linter), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_each_exception_from_the_linter_has_its_reason() -> None:
    ignores = re.findall(r"^# hadolint ignore=.*$", TEXT, re.MULTILINE)
    assert [line for line in ignores if not re.fullmatch(r"# hadolint ignore=DL\d{4} # .{10,}", line)] == []


def test_base_images_have_a_full_version() -> None:
    bases = re.findall(r"^ARG BASE_\w+=(\S+)$", TEXT, re.MULTILINE)
    assert len(bases) == 2
    assert [base for base in bases if not re.search(r":\d+\.\d+\.\d+-", base)] == []


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_packages_are_those_of_the_lock_with_their_hashes(profile: str) -> None:
    stage = stages()[f"packages-{profile}"]
    installs = [line for line in stage if "pip install" in line]
    assert installs
    for line in installs:
        assert line.count("pip install") == line.count("pip install --no-deps --require-hashes")
        assert f"source=requirements/{profile}.txt" in line
    lock = (ROOT / "requirements" / f"{profile}.txt").read_text()
    pinned = re.findall(r"^\S+==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[a-z]\S*==", lock, re.MULTILINE))


def test_what_builds_loramem_is_in_both_locks() -> None:
    for profile in ("gpu", "cpu"):
        assert re.search(r"^setuptools==", (ROOT / "requirements" / f"{profile}.txt").read_text(), re.MULTILINE)


def test_pythons_are_those_that_the_locks_are_made_for() -> None:
    made = dict(re.findall(r"compile requirements/(cpu|gpu)\.txt (3\.\d+)", (ROOT / "deploy" / "lock.sh").read_text()))
    assert f"ARG BASE_CPU=python:{made['cpu']}." in TEXT
    assert any(line.startswith(f"RUN python{made['gpu']} -m venv") for line in stages()["packages-gpu"])


def test_cuda_is_the_release_that_torch_is_built_for() -> None:
    lock = (ROOT / "requirements" / "gpu.txt").read_text()
    runtime = re.search(r"^nvidia-cuda-runtime==(\d+)\.(\d+)\.", lock, re.MULTILINE)
    assert runtime
    major, minor = runtime.groups()
    assert f"ARG BASE_GPU=nvidia/cuda:{major}.{minor}." in TEXT
    packages = re.findall(r"cuda-nvcc-(\d+)-(\d+)", TEXT)
    assert packages == [(major, minor)]
    assert f"vLLM {pinned(lock, 'vllm')} on torch {pinned(lock, 'torch')}" in TEXT


def pinned(lock: str, package: str) -> str:
    match = re.search(rf"^{package}==(\S+)", lock, re.MULTILINE)
    assert match
    return match[1]


def torch_lines(tmp_path: Path) -> tuple[str, str]:
    """What the CPU stage's own shell commands take from the lock and from deploy/setup.sh."""
    stage = next(line for line in stages()["packages-cpu"] if "torch.txt" in line)
    commands = [part.strip() for part in stage.partition("index=")[2].split("&&")]
    script = "index=" + commands[0] + "\n" + commands[1] + '\necho "$index"'
    for name, source in (("setup.sh", "deploy/setup.sh"), ("cpu.txt", "requirements/cpu.txt")):
        shutil.copy(ROOT / source, tmp_path / name)
    script = script.replace("/tmp/", f"{tmp_path}/").replace("/root/", f"{tmp_path}/")
    done = subprocess.run(["sh", "-eu"], input=script, capture_output=True, text=True, check=True)
    return done.stdout.strip(), (tmp_path / "torch.txt").read_text()


def test_the_cpu_build_of_torch_has_its_hash_and_comes_from_its_own_index(tmp_path: Path) -> None:
    index, torch = torch_lines(tmp_path)
    assert re.fullmatch(r"https://\S+/whl/cpu", index)
    assert re.fullmatch(r"torch==\S+\+cpu \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+", torch)


def test_the_wheel_holds_what_the_packages_read() -> None:
    """The images install a wheel: a data file that it lacks is missed there only, never in a checkout."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    missing = []
    for package in PACKAGES:
        patterns = declared.get(package, [])
        files = (file.relative_to(ROOT / package) for file in (ROOT / package).rglob("*") if file.is_file())
        data = [file for file in files if file.suffix != ".py" and "__pycache__" not in file.parts]
        missing += [f"{package}/{file}" for file in data if not any(file.match(pattern) for pattern in patterns)]
    assert not missing, "declare them under [tool.setuptools.package-data]"


def test_the_version_is_this_one() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in TEXT


def test_it_does_not_run_as_root_and_starts_one_program_without_a_shell() -> None:
    assert "USER 10001:10001" in stages()["runtime"]
    assert "STOPSIGNAL SIGTERM" in stages()["runtime"]
    for target, module in (("server", "server"), ("trainer", "trainer_worker")):
        lines = stages()[target]
        assert lines[0] == f"FROM runtime AS {target}"
        assert not [line for line in lines if line.startswith(("USER", "RUN"))]
        assert lines[-1] == f'CMD ["python", "-m", "{module}"]'
        assert any(re.search(r'^HEALTHCHECK .* CMD \["python", ', line) for line in lines)


def test_server_is_what_a_build_without_a_target_makes() -> None:
    assert list(stages())[-1] == "server"


def test_what_is_written_at_run_time_goes_to_the_volume() -> None:
    environment = " ".join(line for line in instructions() if line.startswith("ENV"))
    caches = dict(re.findall(r"(\w*(?:CACHE|HOME|ROOT|WORKSPACE)\w*)=(\S+)", environment))
    assert {"HOME", "XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "LORAMEM_HOME"} <= set(caches)
    del caches["CUDA_HOME"]  # read only
    assert [key for key, folder in caches.items() if folder != "/data" and not folder.startswith("/data/")] == []


def test_the_build_gets_what_it_uses_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    used = set(re.findall(r"type=bind,source=([\w./-]+)", TEXT)) - {"/dist"}
    for line in instructions():
        if line.startswith("COPY") and "--from" not in line:
            used.update(line.split()[1:-1])
    assert used == kept
    assert [name for name in kept if not (ROOT / name).exists()] == []
    assert not [name for name in kept if fnmatch(name, ".env*")]


def test_threads_spin_as_long_in_a_container() -> None:
    """At a barrier, in the trainer and the engine."""
    found = [
        re.findall(r'GOMP_SPINCOUNT[=:] ?"?(\d+)', (ROOT / name).read_text())
        for name in ("Dockerfile", "docker-compose.yml")
    ]
    assert found == [[SPIN_COUNT], [SPIN_COUNT] * 2]
