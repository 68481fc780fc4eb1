"""docker-compose.yml by its structure, by Compose itself where it is installed, and against the settings."""

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from dotenv import dotenv_values

from loramem import __version__
from loramem.settings import Settings
from tests.rules import ROOT

FILE = ROOT / "docker-compose.yml"
PROFILES = ("gpu", "cpu")
OWN = {"gpu": ("gateway", "trainer"), "cpu": ("gateway-cpu", "trainer-cpu")}
AROUND = {"postgres", "valkey", "prometheus", "grafana"}
PUBLISHED = {"gateway", "gateway-cpu", "grafana"}
SECRETS = {
    "LORAMEM_API_KEYS": '["user", "internal"]',
    "INTERNAL_KEY": "internal",
    "POSTGRES_PASSWORD": "secret",
    "GRAFANA_PASSWORD": "secret",
}
FOR_ONE_PROCESS = {"LORAMEM_HOST", "LORAMEM_PORT", "LORAMEM_API_KEYS"} | {
    "LORAMEM_WRITER_URL",
    "LORAMEM_WRITER_API_KEY",
    "LORAMEM_WORKER_METRICS_HOST",
    "LORAMEM_WORKER_METRICS_PORT",
}


@cache
def described() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def services(profile: str | None = None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = described()["services"]
    return {name: each for name, each in found.items() if profile is None or profile in each.get("profiles", [profile])}


every_service = pytest.mark.parametrize("name", list(services()))


def compose() -> list[str]:
    """Compose's command, version 2 or later; skips the test where there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.lstrip("v").split(".")[0] not in ("", "1"):
                return command
    pytest.skip("Compose is not installed")


def config(command: list[str], profile: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    own = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    call = [*command, "--file", str(FILE), "--env-file", os.devnull, "--profile", profile, "config", "--format", "json"]
    return subprocess.run(call, env={**own, **variables}, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_itself_accepts_it(profile: str) -> None:
    done = config(compose(), profile, {**SECRETS, "LORAMEM_MODEL": "some/model"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["services"]
    assert set(found) == AROUND | set(OWN[profile])
    for name in OWN[profile]:
        assert found[name]["environment"]["LORAMEM_MODEL"] == "some/model"


@pytest.mark.parametrize("missing", SECRETS)
def test_compose_itself_refuses_to_start_without_a_secret(missing: str) -> None:
    done = config(compose(), "cpu", {key: value for key, value in SECRETS.items() if key != missing})
    assert done.returncode != 0
    assert missing in done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_one_gateway_and_one_trainer_and_all_that_is_around_them(profile: str) -> None:
    assert set(services(profile)) == AROUND | set(OWN[profile])


def test_both_profiles_are_reached_by_the_same_names() -> None:
    for name, alias in (("gateway-cpu", "gateway"), ("trainer-cpu", "trainer")):
        assert services()[name]["networks"]["internal"]["aliases"] == [alias]


@every_service
def test_it_is_hardened(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)


@every_service
def test_it_has_a_health_check_that_can_tell(name: str) -> None:
    health = services()[name]["healthcheck"]
    assert health["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(health)
    assert str(services()[name]["expose"][0]) in " ".join(health["test"])


@every_service
def test_it_waits_for_the_health_of_what_it_needs(name: str) -> None:
    needs = services()[name].get("depends_on", {})
    assert {each["condition"] for each in needs.values()} <= {"service_healthy"}
    for profile in services()[name].get("profiles", PROFILES):
        assert set(needs) <= set(services(profile))


def test_the_trainer_starts_after_the_stores_and_the_gateway() -> None:
    for gateway, trainer in OWN.values():
        assert set(services()[gateway]["depends_on"]) == {"postgres", "valkey"}
        assert set(services()[trainer]["depends_on"]) == {"postgres", "valkey", gateway}


@every_service
def test_only_gateway_and_grafana_are_published(name: str) -> None:
    service = services()[name]
    networks = set(service["networks"])
    assert ("ports" in service) == (name in PUBLISHED) == ("edge" in networks)
    assert "internal" in networks
    for port in service.get("ports", ()):
        assert re.match(r"\$\{\w+_BIND:-127\.0\.0\.1\}:", port), "published on loopback unless .env says otherwise"


def test_the_inner_network_has_no_way_out() -> None:
    assert described()["networks"]["internal"] == {"internal": True}


def test_images_have_a_full_version_and_ours_is_this_one() -> None:
    for name, service in services().items():
        version = service["image"].split(":")[1]
        if "build" in service:
            target, profile = service["build"]["target"], service["build"]["args"]["PROFILE"]
            assert service["image"] == f"loramem/{target}:{__version__}-{profile}"
            assert profile in service["profiles"], name
        else:
            assert re.match(r"v?\d+\.\d+", version), name


def test_volumes_are_named_and_all_are_used() -> None:
    used = {volume.split(":")[0] for service in services().values() for volume in service.get("volumes", ())}
    assert {name for name in used if not name.startswith(".")} == set(described()["volumes"])


def test_mounted_files_exist_and_are_read_only() -> None:
    mounts = [volume for service in services().values() for volume in service.get("volumes", ()) if volume[0] == "."]
    assert mounts
    for mount in mounts:
        source, _, mode = mount.split(":")
        assert mode == "ro"
        assert (ROOT / source).exists(), source


def test_gateway_and_trainer_share_the_data_folder() -> None:
    for name in (name for pair in OWN.values() for name in pair):
        assert services()[name]["volumes"] == ["data:/data"]
        assert services()[name]["environment"]["LORAMEM_HOME"] == "/data"


def test_only_the_gpu_profile_asks_for_gpus() -> None:
    for profile, names in OWN.items():
        for name in names:
            devices = services()[name].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
            assert [device["driver"] for device in devices] == (["nvidia"] if profile == "gpu" else [])


@pytest.mark.parametrize("name", [name for name in services() if name not in ("postgres", "valkey")])
def test_services_ask_each_other_directly_whatever_proxy_the_host_gives_them(name: str) -> None:
    """Docker hands the proxies of its client's configuration to every container."""
    environment = services()[name]["environment"]
    direct = environment["NO_PROXY"].split(",")
    assert direct[:4] == ["gateway", "prometheus", "localhost", "127.0.0.1"]
    assert environment["no_proxy"] == environment["NO_PROXY"]
    if "LORAMEM_WRITER_URL" in environment:
        assert urlsplit(environment["LORAMEM_WRITER_URL"]).hostname in direct


@every_service
def test_a_health_check_goes_through_no_proxy(name: str) -> None:
    """BusyBox's wget, which the images of others have, heeds `http_proxy` and knows no `NO_PROXY`."""
    command = services()[name]["healthcheck"]["test"]
    assert "wget" not in command or "--proxy=off" in command


def test_valkey_loses_nothing_when_it_is_killed_and_evicts_nothing() -> None:
    command = services()["valkey"]["command"]
    assert {"--appendonly yes", "--appendfsync everysec", "--maxmemory-policy noeviction"} <= set(command)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_health_checks_are_those_of_the_images(profile: str) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name in OWN[profile]:
        test = json.dumps(services()[name]["healthcheck"]["test"][1:])
        assert f"CMD {test}" in dockerfile
        assert f"CMD {json.dumps(services()[name]['command'])}" in dockerfile


@pytest.mark.parametrize("name", [name for pair in OWN.values() for name in pair])
def test_every_setting_exists_and_can_be_given(name: str) -> None:
    known = {f"LORAMEM_{field.upper()}" for field in Settings.model_fields}
    given = {key for key in services()[name]["environment"] if key.startswith("LORAMEM_")}
    assert given - known == set()
    assert known - given <= FOR_ONE_PROCESS, "list it under x-settings and explain it in .env.example"


def test_the_gateway_and_the_trainer_accept_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.stack_compose import interpolate, load

    for key in [key for key in os.environ if key.startswith("LORAMEM_")]:
        monkeypatch.delenv(key)
    found = {service.hosts[-1]: service for service in load(FILE, "cpu", SECRETS) if service.built}
    for service in found.values():
        settings_of_it = {key: value for key, value in service.environment.items() if key.startswith("LORAMEM_")}
        given = {key: interpolate(value, SECRETS) for key, value in settings_of_it.items()}
        with monkeypatch.context() as patched:
            for key, value in given.items():
                patched.setenv(key, value)
            settings = Settings()
        if service is found["gateway"]:
            keys = [key.get_secret_value() for key in settings.api_keys]
            assert (settings.host, settings.port, keys) == ("0.0.0.0", 8000, ["user", "internal"])
        else:
            assert (settings.writer_base_url, settings.writer_key) == ("http://gateway:8000/v1", "internal")
        assert settings.sqlalchemy_url == "postgresql://loramem:secret@postgres:5432/loramem"


def test_the_example_explains_every_variable_and_no_other() -> None:
    text = (ROOT / ".env.example").read_text()
    explained = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))
    source = FILE.read_text()
    used = set(re.findall(r"\$\{(\w+)", source)) | set(re.findall(r"^  (LORAMEM_\w+):$", source, re.MULTILINE))
    assert explained == used | {"COMPOSE_PROFILES"}


def test_the_example_starts_once_its_secrets_are_changed() -> None:
    example = dotenv_values(ROOT / ".env.example")
    assert {key for key in SECRETS if example.get(key)} == set(SECRETS)
    assert example["INTERNAL_KEY"] in json.loads(str(example["LORAMEM_API_KEYS"]))
    assert [key for key in SECRETS if "change-me" not in str(example[key])] == []


def test_the_examples_defaults_are_the_settings_own() -> None:
    text = (ROOT / ".env.example").read_text()
    shown = dict(re.findall(r"^#LORAMEM_([A-Z_]+)=(.*)$", text, re.MULTILINE))
    differing = {key: value for key, value in shown.items() if value != str(Settings.model_fields[key.lower()].default)}
    assert differing == {}


def test_prometheus_scrapes_both_with_the_key() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in scraped["scrape_configs"]}
    assert jobs["gateway"]["static_configs"] == [{"targets": ["gateway:8000"]}]
    assert jobs["trainer"]["dns_sd_configs"] == [{"names": ["trainer"], "type": "A", "port": 9100}]
    key_file = jobs["gateway"]["authorization"]["credentials_file"]
    assert f"> {key_file} " in services()["prometheus"]["entrypoint"][2]
    assert scraped["rule_files"] == ["rules.yml"]


def test_grafana_is_provisioned_with_the_datasource_and_the_dashboards() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert urlsplit(source["url"]).hostname in services()["grafana"]["environment"]["NO_PROXY"].split(",")
    [provider] = yaml.safe_load((folder / "dashboards" / "loramem.yml").read_text())["providers"]
    mounts = services()["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert list(Path(ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
