"""stack.py: what it reads of docker-compose.yml, what it makes of it here, and the order of starting and stopping."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deploy import stack
from deploy.stack_compose import Service, StackError, interpolate, load, seconds
from deploy.stack_local import Localiser, Process, free_ports
from tests.deploy.test_compose import FILE, SECRETS
from tests.rules import ROOT

PLAIN = Service(
    name="one",
    image="loramem/one:1",
    built=True,
    command=("python", "-c", "import time; time.sleep(60)"),
    environment={},
    hosts=("one",),
    port=80,
    needs=(),
    health=(sys.executable, "-c", ""),
    health_wait_s=10,
    mounts=(),
    tmpfs=(),
    stop_signal="SIGTERM",
    stop_grace_s=10,
)


def named(profile: str = "cpu", **variables: str) -> dict[str, Service]:
    return {service.name: service for service in load(FILE, profile, {**SECRETS, **variables})}


@pytest.fixture
def localiser(tmp_path: Path) -> Localiser:
    return Localiser(list(named().values()), ROOT, tmp_path, SECRETS)


def given(tmp_path: Path, **variables: str) -> dict[str, Process]:
    """Every service's process, with these set."""
    services = named(**variables)
    localiser = Localiser(list(services.values()), ROOT, tmp_path, {**SECRETS, **variables})
    return {name: localiser.process(service) for name, service in services.items()}


# reading


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${SET}", "here"),
        ("a${SET}b${EMPTY}c", "aherebc"),
        ("${MISSING}", ""),
        ("${MISSING:-8000}", "8000"),
        ("${EMPTY:-8000}", "8000"),
        ("${SET:?told}", "here"),
        ("$$SET", "$SET"),
    ],
)
def test_variables_are_filled_in(text: str, value: str) -> None:
    assert interpolate(text, {"SET": "here", "EMPTY": ""}) == value


@pytest.mark.parametrize("text", ["${MISSING:?set it}", "${EMPTY:?set it}"])
def test_a_required_variable_is_named(text: str) -> None:
    with pytest.raises(StackError, match=r"(MISSING|EMPTY) is missing: set it"):
        interpolate(text, {"EMPTY": ""})


@pytest.mark.parametrize("text", ["$SET", "${SET+other}", "${SET", "${}"])
def test_a_form_that_is_not_understood_is_no_text(text: str) -> None:
    with pytest.raises(StackError, match="not understood"):
        interpolate(text, {"SET": "here"})


@pytest.mark.parametrize(("duration", "expected"), [("45s", 45), ("30m", 1800), ("1h1m1s", 3661)])
def test_durations(duration: str, expected: float) -> None:
    assert seconds(duration) == expected


@pytest.mark.parametrize("duration", ["", "soon", "10"])
def test_what_is_no_duration_is_refused(duration: str) -> None:
    with pytest.raises(StackError, match="no duration"):
        seconds(duration)


def test_services_come_after_those_that_they_need() -> None:
    names = list(named())
    assert names.index("trainer-cpu") > names.index("gateway-cpu") > max(names.index("postgres"), names.index("valkey"))


def test_the_other_profile_is_left_alone() -> None:
    assert {"gateway", "trainer"} <= set(named("gpu"))
    assert not {"gateway-cpu", "trainer-cpu"} & set(named("gpu"))
    with pytest.raises(StackError, match="cpu and gpu"):
        named("tpu")


def test_a_setting_is_passed_on_only_if_it_is_set(tmp_path: Path) -> None:
    assert "LORAMEM_MODEL" not in named()["gateway-cpu"].environment
    process = given(tmp_path, LORAMEM_MODEL="some/model")["gateway-cpu"]
    assert process.environment["LORAMEM_MODEL"] == "some/model"


def test_only_what_is_the_texts_own_is_rewritten() -> None:
    variables = {"SET": "a"}
    assert interpolate("a ${SET} a$$ ${MISSING:-a}", variables, lambda text: text.replace("a", "b")) == "b a b$ b"


# on this machine


def test_addresses_ports_and_paths_become_real_ones(localiser: Localiser, tmp_path: Path) -> None:
    services = named()
    gateway, trainer = (localiser.process(services[name]) for name in ("gateway-cpu", "trainer-cpu"))
    postgres = localiser.process(services["postgres"])
    assert gateway.environment["LORAMEM_PORT"] == str(gateway.port)
    assert gateway.environment["LORAMEM_HOST"] == "127.0.0.1"
    assert gateway.environment["LORAMEM_HOME"] == trainer.environment["LORAMEM_HOME"] == str(tmp_path / "volumes/data")
    assert trainer.environment["LORAMEM_WRITER_URL"] == f"http://127.0.0.1:{gateway.port}/v1"
    assert trainer.environment["LORAMEM_WORKER_METRICS_PORT"] == str(trainer.port)
    database = f"postgresql://loramem:secret@127.0.0.1:{postgres.port}/loramem"
    assert gateway.environment["LORAMEM_DATABASE_URL"] == trainer.environment["LORAMEM_DATABASE_URL"] == database
    assert f"http://127.0.0.1:{gateway.port}/readyz" in " ".join(gateway.health)
    assert f"-cport={postgres.port}" in postgres.command
    assert f"-cunix_socket_directories={tmp_path}/tmp/postgres/var-run-postgresql" in postgres.command
    assert gateway.command == services["gateway-cpu"].command


def test_nothing_of_the_container_is_left(localiser: Localiser) -> None:
    for service in named().values():
        process = localiser.process(service)
        texts = [*process.command, *process.health, *process.environment.values()]
        left = [path for path in (*(m.target for m in service.mounts), *service.tmpfs) if path in texts]
        assert left == []
        assert not [text for text in texts if "0.0.0.0" in text]
        assert not [text for text in texts for host in ("postgres:5432", "valkey:6379", "gateway:8000") if host in text]


def test_mounted_files_are_copied_with_the_addresses_in_them(localiser: Localiser, tmp_path: Path) -> None:
    services = named()
    names = ("gateway-cpu", "trainer-cpu", "prometheus", "grafana")
    processes = {name: localiser.process(services[name]) for name in names}
    config = tmp_path / "mounts/prometheus/etc/prometheus/prometheus.yml"
    assert f"--config.file={config}" in processes["prometheus"].command
    jobs = {job["job_name"]: job for job in yaml.safe_load(config.read_text())["scrape_configs"]}
    assert jobs["gateway"]["static_configs"] == [{"targets": [f"127.0.0.1:{processes['gateway-cpu'].port}"]}]
    assert jobs["trainer"] == {
        "job_name": "trainer",
        "static_configs": [{"targets": [f"127.0.0.1:{processes['trainer-cpu'].port}"]}],
    }
    key_file = jobs["gateway"]["authorization"]["credentials_file"]
    assert f"> {key_file} " in processes["prometheus"].command[2]
    provisioned = Path(processes["grafana"].environment["GF_PATHS_PROVISIONING"])
    [source] = yaml.safe_load((provisioned / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == f"http://127.0.0.1:{processes['prometheus'].port}"
    [provider] = yaml.safe_load((provisioned / "dashboards/loramem.yml").read_text())["providers"]
    assert list(Path(provider["options"]["path"]).glob("*.json"))


def test_the_environment_is_the_files_and_not_ours(localiser: Localiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_RANK", "64")
    monkeypatch.setenv("PGPASSWORD", "ours")
    for service in named().values():
        assert not {"LORAMEM_RANK", "PGPASSWORD"} & set(localiser.process(service).environment)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("LORAMEM_MODEL", "/data/models/mine"),
        ("LORAMEM_EMBEDDER", "/tmp/embedder"),
        ("LORAMEM_MAX_MODEL_LEN", "8000"),
        ("LORAMEM_API_KEYS", '["abc-8000-x", "internal"]'),
    ],
)
def test_what_a_user_sets_is_left_as_it_is(tmp_path: Path, key: str, value: str) -> None:
    assert given(tmp_path, **{key: value})["gateway-cpu"].environment[key] == value


def test_a_password_that_reads_like_a_port_is_the_same_on_both_sides(tmp_path: Path) -> None:
    processes = given(tmp_path, POSTGRES_PASSWORD="a-5432-b")
    postgres, gateway = processes["postgres"], processes["gateway-cpu"]
    assert postgres.environment["POSTGRES_PASSWORD"] == "a-5432-b"
    database = f"postgresql://loramem:a-5432-b@127.0.0.1:{postgres.port}/loramem"
    assert gateway.environment["LORAMEM_DATABASE_URL"] == database


def test_a_port_that_a_service_does_not_have_is_an_error(localiser: Localiser) -> None:
    with pytest.raises(StackError, match="gateway-cpu exposes 8000"):
        localiser.text(named()["trainer-cpu"], "http://gateway:8001")


def test_prometheus_accepts_its_configuration(localiser: Localiser, tmp_path: Path) -> None:
    promtool = os.environ.get("LORAMEM_TEST_PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    localiser.process(named()["prometheus"])
    (tmp_path / "tmp/prometheus/tmp/scrape_key").write_text("key")
    config = tmp_path / "mounts/prometheus/etc/prometheus/prometheus.yml"
    done = subprocess.run([promtool, "check", "config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout


# what is started


def test_a_program_that_is_missing_is_left_out_unless_it_is_needed() -> None:
    services = list(named().values())
    everything = [service.name for service in services]
    chosen, left_out = stack.plan(services, [name for name in everything if name != "grafana"], [])
    assert [service.name for service in left_out] == ["grafana"]
    assert [service.name for service in chosen] == [name for name in everything if name != "grafana"]
    with pytest.raises(StackError, match="postgres needs the program 'postgres'"):
        stack.plan(services, [name for name in everything if name != "postgres"], [])


def test_only_some_come_with_what_they_need() -> None:
    services = list(named().values())
    everything = [service.name for service in services]
    chosen, _ = stack.plan(services, everything, ["gateway-cpu"])
    assert {service.name for service in chosen} == {"gateway-cpu", "postgres", "valkey"}
    with pytest.raises(StackError, match="prometheus needs"):
        stack.plan(services, [], ["prometheus"])
    with pytest.raises(StackError, match="no such service in this profile: gateway;"):
        stack.plan(services, everything, ["gateway"])


# starting and stopping


def process_of(folder: Path, **changes: object) -> Process:
    service = replace(PLAIN, **changes)  # type: ignore[arg-type]
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return Process(service, free_ports(1)[0], service.command, environment, service.health, folder)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[stack.Stack]:
    made = stack.Stack(tmp_path)
    yield made
    made.stop()


NOTES_ITS_END = """
import pathlib, signal, sys, time
def end(number, frame):
    with open("order", "a") as order:
        order.write(f"{sys.argv[1]} {number}\\n")
    sys.exit()
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_they_start_when_the_one_before_is_healthy_and_stop_in_reverse(started: stack.Stack, tmp_path: Path) -> None:
    for name, stop_signal in (("first", "SIGINT"), ("second", "SIGTERM")):
        command = ("python", "-c", NOTES_ITS_END, name)
        process = process_of(tmp_path, name=name, command=command, health=("test", "-e", name), stop_signal=stop_signal)
        started.start(process)
        assert (tmp_path / name).exists()
    started.check()
    started.stop()
    assert (tmp_path / "order").read_text() == f"second {signal.SIGTERM}\nfirst {signal.SIGINT}\n"


def test_one_that_ends_is_named_with_its_last_words(started: stack.Stack, tmp_path: Path) -> None:
    command = ("python", "-c", "raise SystemExit('no such model')")
    with pytest.raises(StackError, match=r"one ended with status 1:\nno such model"):
        started.start(process_of(tmp_path, command=command, health=("false",)))


def test_one_that_ends_later_is_noticed(started: stack.Stack, tmp_path: Path) -> None:
    started.start(process_of(tmp_path))
    started.running[0].child.kill()
    started.running[0].child.wait()
    with pytest.raises(StackError, match="one ended with status -9"):
        started.check()


def test_one_that_never_is_healthy_is_not_waited_for_forever(started: stack.Stack, tmp_path: Path) -> None:
    with pytest.raises(StackError, match="one is not healthy"):
        started.start(process_of(tmp_path, health=("false",), health_wait_s=0.3))


def test_one_that_does_not_stop_is_killed(started: stack.Stack, tmp_path: Path) -> None:
    deaf = "import pathlib, signal, time; signal.signal(15, signal.SIG_IGN); pathlib.Path('up').touch(); time.sleep(60)"
    process = process_of(tmp_path, command=("python", "-c", deaf), health=("test", "-e", "up"), stop_grace_s=0.2)
    started.start(process)
    child = started.running[0].child
    began = time.monotonic()
    started.stop()
    assert child.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 5


def test_a_health_command_that_cannot_run_here_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="'no-such-program' is not installed"):
        stack.healthy(process_of(tmp_path, health=("no-such-program",)))
