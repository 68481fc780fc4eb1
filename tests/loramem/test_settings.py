from pathlib import Path

import pytest

from loramem.errors import SettingsError
from loramem.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LORAMEM_{name.upper()}", raising=False)


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
        ({"chunk_tokens": 64, "chunk_overlap_tokens": 64}, "CHUNK_OVERLAP_TOKENS must be smaller than CHUNK_TOKENS"),
        ({"lease_s": 10, "heartbeat_s": 6}, "HEARTBEAT_S must be at most half of LEASE_S"),
        ({"rank": 64, "max_lora_rank": 32}, "RANK must not exceed MAX_LORA_RANK"),
        ({"host": "0.0.0.0"}, "set API_KEYS"),
        ({"host": "0.0.0.0", "api_keys": ("",)}, "API_KEYS must hold keys of one or more ASCII characters"),
        ({"api_keys": ("good", "with space")}, "without spaces"),
        ({"api_keys": ("good", "change-me-user-key")}, "a key of .env.example, which everybody knows"),
        ({"api_keys": ("schl\u00fcssel",)}, "ASCII"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings(**values)


def test_with_keys_any_address_may_be_bound() -> None:
    assert load_settings(host="0.0.0.0", api_keys=("k1",)).host == "0.0.0.0"


def test_secrets_do_not_show_in_a_printed_object() -> None:
    shown = repr(load_settings(api_keys=("hush",), writer_api_key="hush"))
    assert "hush" not in shown


def test_the_object_is_frozen() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
