import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from loramem.errors import SettingsError
from loramem.settings import OTHER_VARIABLES, Settings, load_settings, masked, variable
from tests.test_rules import tracked_text


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LORAMEM_")]:
        monkeypatch.delenv(name)


def test_without_any_setting_it_is_local_and_open() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.api_keys) == ("127.0.0.1", 8000, ())
    assert settings.sqlalchemy_url == f"sqlite:///{Path.home() / '.loramem' / 'loramem.db'}"
    assert settings.writer_base_url == "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
    ],
)
def test_the_gateway_is_reached_at_a_url_that_its_host_gives(host: str, url: str) -> None:
    settings = load_settings(host=host, api_keys=("k",))
    assert (settings.gateway_url, settings.writer_base_url) == (url, f"{url}/v1")


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAMEM_HOME", str(tmp_path))
    monkeypatch.setenv("LORAMEM_PORT", "8123")
    monkeypatch.setenv("LORAMEM_API_KEYS", '["k1", "k2"]')
    monkeypatch.setenv("LORAMEM_DATABASE_URL", "postgresql://db/loramem")
    monkeypatch.setenv("LORAMEM_WRITER_URL", "https://writer/v1/")
    settings = load_settings()
    assert settings.adapters_path == tmp_path / "adapters"
    assert [key.get_secret_value() for key in settings.api_keys] == ["k1", "k2"]
    assert settings.sqlalchemy_url == "postgresql://db/loramem"
    assert settings.writer_base_url == "https://writer/v1"


@pytest.mark.parametrize(("value", "cpu", "gpu"), [("auto", 8, 0), ("0", 0, 0), ("3", 3, 3)])
def test_drafts_are_for_cpus_unless_a_number_is_given(
    monkeypatch: pytest.MonkeyPatch, value: str, cpu: int, gpu: int
) -> None:
    monkeypatch.setenv("LORAMEM_SPECULATIVE_TOKENS", value)
    settings = load_settings()
    assert (settings.speculative_tokens_on("cpu"), settings.speculative_tokens_on("gpu")) == (cpu, gpu)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PORT", "0", "greater than or equal to 1"),
        ("PORT", "eighty", "valid integer"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("RANK", "7", "8, 16, 32 or 64"),
        ("MAX_LORA_RANK", "48", "8, 16, 32, 64, 128 or 256"),
        ("LEASE_S", "0", "greater than 0"),
        ("KV_CACHE_BYTES", "-1", "greater than 0"),
        ("WRITER_URL", "localhost:1234", "must start with http:// or https://"),
        ("SPECULATIVE_TOKENS", "33", "less than or equal to 32"),
        ("SPECULATIVE_TOKENS", "some", "'auto'"),
        ("SEED", "-1", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_stops_the_start_with_key_value_and_rule(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(f"LORAMEM_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert f"LORAMEM_{name}='{value}'" in message
    assert told in message


def test_all_wrong_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_PORT", "0")
    monkeypatch.setenv("LORAMEM_RANK", "7")
    with pytest.raises(SettingsError, match=r"(?s)LORAMEM_PORT.*LORAMEM_RANK"):
        load_settings()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"chunk_tokens": 64, "chunk_overlap_tokens": 65},
            "LORAMEM_CHUNK_OVERLAP_TOKENS=65 must be smaller than LORAMEM_CHUNK_TOKENS=64",
        ),
        ({"lease_s": 10, "heartbeat_s": 5.5}, "LORAMEM_HEARTBEAT_S=5.5 must be at most half of LORAMEM_LEASE_S=10"),
        ({"rank": 64, "max_lora_rank": 32}, "LORAMEM_RANK=64 must not exceed LORAMEM_MAX_LORA_RANK=32"),
        ({"host": "0.0.0.0"}, r"LORAMEM_HOST='0\.0\.0\.0' is reachable from outside: set LORAMEM_API_KEYS"),
        ({"host": "0.0.0.0", "api_keys": ("",)}, "LORAMEM_API_KEYS must hold keys of one or more ASCII characters"),
        ({"api_keys": ("good", "with space")}, "without spaces"),
        ({"api_keys": ("good", "change-me-user-key")}, "a key of .env.example, which everybody knows"),
        ({"api_keys": ("schl\u00fcssel",)}, "ASCII"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings(**values)


@pytest.mark.parametrize("value", ["hush", '"hush"', '["hush"', '{"hush": "hush"}', '[["hush"]]', "['hush']"])
def test_keys_that_are_no_json_list_are_refused_and_not_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LORAMEM_API_KEYS", value)
    with pytest.raises(SettingsError, match=r"LORAMEM_API_KEYS=\*{6}: .*string") as caught:
        load_settings()
    assert "hush" not in str(caught.value)


def test_keys_that_are_empty_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMEM_API_KEYS", "")
    assert load_settings().api_keys == ()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("foo", "'foo': must be a URL"),
        ("me:hush@db/loramem", "'me:******': must be a URL"),
        ("postgresql://me:hush", "'postgresql://******': must be a URL"),
        ("postgres://me:hush@db/loramem", "'postgres://******': must begin with postgresql://, not postgres://"),
        ("mysql://me:hush@db/loramem", "must begin with one of sqlite://, postgresql://, postgresql+psycopg://"),
        ("postgresql+psycopg2://me:hush@db/loramem", "must begin with one of sqlite://, postgresql://"),
        ("sqlite://loramem.db", "must name a file"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
    ],
)
def test_a_database_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, url: str, told: str) -> None:
    monkeypatch.setenv("LORAMEM_DATABASE_URL", url)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "LORAMEM_DATABASE_URL='" in str(caught.value)
    assert told in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:///loramem.db",
        "sqlite:////var/lib/loramem.db",
        "postgresql:///loramem",
        "postgresql+psycopg://me:p@ss/w@db:5432/loramem?sslmode=require",
    ],
)
def test_a_database_that_may_be_is_kept_as_it_is(url: str) -> None:
    assert load_settings(database_url=url).database_url == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hush@db/x", "postgresql://me:******@db/x"),
        ("postgresql://me@there:hu/s:h@db:5432/x", "postgresql://me@there:******@db:5432/x"),
        ("postgresql://db/x?user=me&password=hush&sslmode=require", None),
        ("redis://:hush@redis:6379", "redis://:******@redis:6379"),
        ("me:hush@db/x", "me:******@db/x"),
        ("postgresql://me@db:5432/x", "postgresql://me@db:5432/x"),
        ("sqlite:////home/me@here/x.db", "sqlite:////home/me@here/x.db"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    ],
)
def test_passwords_are_masked(url: str, shown: str | None) -> None:
    assert masked(url) == (shown or url.replace("hush", "******"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("MODLE", "did you mean LORAMEM_MODEL?"),
        ("API_KYES", "did you mean LORAMEM_API_KEYS?"),
        ("KV_CACHE_GB", "did you mean LORAMEM_KV_CACHE_BYTES?"),
        ("PROFIL", "did you mean LORAMEM_PROFILE?"),
        ("XYZ", "`loramem settings --markdown` lists all"),
    ],
)
def test_a_name_that_nobody_reads_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, told: str
) -> None:
    monkeypatch.setenv(f"LORAMEM_{name}", "hush")
    load_settings()
    assert f"LORAMEM_{name}: there is no such setting, it is ignored; {told}" in caplog.text
    assert "hush" not in caplog.text


def test_what_other_parts_read_may_be_set(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for pattern in OTHER_VARIABLES:
        monkeypatch.setenv(pattern.replace("*", "X"), "1")
    load_settings()
    assert caplog.text == ""


def test_every_variable_that_the_repository_names_is_known() -> None:
    known = [*map(variable, Settings.model_fields), *OTHER_VARIABLES]
    named = {name for _, text in tracked_text() for name in re.findall(r"\bLORAMEM_[A-Z0-9_]*[A-Z0-9]\b", text)}
    unknown = [name for name in named if not any(fnmatchcase(name, pattern) for pattern in known)]
    assert not unknown, f"a process that has one set would warn of it; list it in OTHER_VARIABLES: {unknown}"


def test_with_keys_any_address_may_be_bound() -> None:
    assert load_settings(host="0.0.0.0", api_keys=("k1",)).host == "0.0.0.0"


def test_secrets_do_not_show_in_a_printed_object() -> None:
    shown = repr(load_settings(api_keys=("hush",), writer_api_key="hush"))
    assert "hush" not in shown


def test_the_object_is_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
