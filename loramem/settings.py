"""Every setting, read once from `LORAMEM_*` at the edge of each process.

A wrong value stops the start (`SettingsError`) and names the key, the value and what is allowed. An unknown
`LORAMEM_*` name is logged and ignored, as other programs may use it. Secrets and passwords are never shown. Units are
in the names. `Settings()` in tests takes keyword arguments and reads the environment too.
"""

import json
import logging
import os
import re
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from loramem.errors import SettingsError

log = logging.getLogger(__name__)

PREFIX = "LORAMEM_"

OTHER_VARIABLES = (
    "LORAMEM_URL",
    "LORAMEM_API_KEY",
    "LORAMEM_PROFILE",
    "LORAMEM_BENCH_DATA",
    "LORAMEM_JUDGE_API_KEY",
    "LORAMEM_ENGINE_*",
    "LORAMEM_TEST_*",
    "LORAMEM_WALKTHROUGH_*",
)
"""Those that are no settings, as patterns: read by the command line, `make`, benchmarks, the engine's processes, tests
and the walkthrough. Any other name is a slip of the pen."""

DATABASES = ("sqlite", "postgresql", "postgresql+psycopg")
"""What the URL of a database may begin with: a dialect, with its driver or without."""

SPECULATIVE_TOKENS = 8
"""Of an answer in a step, on a CPU: the products of eight rows take 18 ms, those of one 11.5 (decision 0022)."""

_KEY = re.compile(r"[!-~]+")
"""Others cannot be sent in a header as they are; an empty one would let everybody in."""
EXAMPLE_KEY = "change-me"
"""How keys and passwords begin in `.env.example`."""

MASK = "******"
_PASSWORD = re.compile(r"(?s)(?<=:)(?!//).+(?=@)|(?<=password=)[^&]+")
"""Of a URL; up to the last @, since one that was not quoted may hold anything."""


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


def _json_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value or "[]")
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError("""must be a JSON list of strings, as '["key1", "key2"]'""")
    return found


def _database_url(value: str) -> str:
    """Looked at here, because a URL that cannot work would end every process that opens it, however often started."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if not value:
        return value
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ValueError("must be a URL, as postgresql://user:password@host:5432/name") from None
    if url.drivername == "postgres":
        raise ValueError("must begin with postgresql://, not postgres://")
    if url.drivername not in DATABASES:
        raise ValueError(f"must begin with one of {', '.join(f'{name}://' for name in DATABASES)}")
    if url.drivername == "sqlite" and (url.database == ":memory:" or set(url.translate_connect_args()) != {"database"}):
        raise ValueError("must name a file, as sqlite:///relative.db or sqlite:////absolute.db")
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
Bytes = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """One frozen object for gateway, worker and command line."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    # where things are
    home: Path = Field(Path("~/.loramem"), description="data folder: database, adapters, caches")
    host: str = Field("127.0.0.1", description="address the gateway binds")
    port: int = Field(8000, ge=1, le=65535, description="port the gateway binds")
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        "", description="SQLAlchemy URL; empty: SQLite under HOME"
    )
    redis_url: str = Field("", description="doorbell for the job queue; empty: the worker polls")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_json_list)] = Field(
        (), description="JSON list of accepted bearer keys; empty: open, loopback only"
    )
    worker_metrics_host: str = Field("127.0.0.1", description="address of the worker's metrics")
    worker_metrics_port: int = Field(0, ge=0, le=65535, description="port of the worker's metrics; 0: off")
    otlp_endpoint: HttpUrl | Literal[""] = Field(
        "", description="OpenTelemetry collector (OTLP over HTTP), as `http://127.0.0.1:4318`; empty: no traces"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")

    # models
    model: str = Field(
        "embedded", description="base model: `embedded`, a Hugging Face id (or `id@commit`) or a local folder"
    )
    embedder: str = Field("embedded", description="embedding model: `embedded`, a Hugging Face id or a local folder")
    served_model_name: str = Field("", description="name under /v1/models; empty: the base model's own name")

    # engine
    max_model_len: int = Field(2048, ge=256, description="the model's window in tokens, prompt and answer together")
    max_loras: int = Field(16, ge=1, le=256, description="adapters active in one batch; a slot each (8B: 0.3 GB)")
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = Field(64, description="rank of the engine's slots")
    max_concurrent_requests: int = Field(32, ge=1, description="sequences the engine runs at once")
    kv_cache_bytes: Bytes = Field(1 << 30, description="key-value cache on a CPU; at least what one window needs")
    gpu_memory_fraction: float = Field(0.6, gt=0, le=1, description="share of the GPU that the engine takes")
    trainer_gpu_memory_fraction: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description="share of it that a worker takes at most; `auto`: 0.05 less than what the engine leaves"
    )
    speculative_tokens: Literal["auto"] | Annotated[int, Field(ge=0, le=32)] = Field(
        "auto", description="most tokens drafted a step from what a memory was taught; `auto`: 8 on a CPU, 0 on a GPU"
    )
    source_pool_bytes: Bytes = Field(1 << 30, description="adapters kept in host memory, ready to be merged")
    device_pool_bytes: Bytes = Field(1 << 30, description="the same on the GPU, of the engine's share")

    # answers
    rag_tokens: int = Field(200, ge=32, description="retrieved text in a prompt, in tokens of the base model")
    max_tokens_limit: int = Field(1024, ge=1, description="most tokens a request may ask for")

    # uploads
    max_body_bytes: Bytes = Field(32 << 20, description="largest request body")
    max_text_chars: int = Field(5_000_000, gt=0, description="longest document, in characters")
    parse_timeout_s: Seconds = Field(120, description="time one file may take to parse")
    parse_memory_bytes: Bytes = Field(1 << 30, description="address space of the parser process")

    # chunks
    chunk_tokens: int = Field(768, ge=64, description="chunk length in tokens of the base model")
    chunk_overlap_tokens: int = Field(64, ge=0, description="tokens a chunk shares with the one before")

    window_tokens: int = Field(
        32, ge=16, description="text behind one vector and retrieved as one passage, in tokens of the embedder"
    )

    # training
    rank: Literal[8, 16, 32, 64] = Field(16, description="rank of a new adapter")
    train_max_s: Seconds = Field(
        1800, description="most time the training of one chunk may take; its plan mostly ends it before"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the shared LoRA A, of data order and of sampling")
    writer_url: HttpUrl | Literal[""] = Field(
        "", description="OpenAI-compatible endpoint that writes training data; empty: the gateway"
    )
    writer_model: str = Field("", description="model name at the writer; empty: the first that it lists")
    writer_api_key: SecretStr = Field(SecretStr(""), description="bearer key of the writer")

    # queue
    lease_s: Seconds = Field(60, description="a worker silent this long loses its job")
    heartbeat_s: Seconds = Field(10, description="how often a worker renews its lease")
    hang_after_s: Seconds = Field(600, description="no step of progress for this long stops the heartbeat")
    poll_s: Seconds = Field(1, description="how often an idle worker looks at the database")
    max_attempts: int = Field(3, ge=1, description="attempts that get no further before a job is dead")
    retired_grace_s: Seconds = Field(
        600, description="how long a retired adapter's files, and a replaced text, stay for answers in flight"
    )

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.chunk_overlap_tokens >= self.chunk_tokens:
            raise ValueError(self._told("chunk_overlap_tokens", "must be smaller than", "chunk_tokens"))
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError(self._told("heartbeat_s", "must be at most half of", "lease_s"))
        if self.rank > self.max_lora_rank:
            raise ValueError(self._told("rank", "must not exceed", "max_lora_rank"))
        if not all(_KEY.fullmatch(key.get_secret_value()) for key in self.api_keys):
            raise ValueError("LORAMEM_API_KEYS must hold keys of one or more ASCII characters each, without spaces")
        if any(key.get_secret_value().startswith(EXAMPLE_KEY) for key in self.api_keys):
            raise ValueError("LORAMEM_API_KEYS holds a key of .env.example, which everybody knows: make your own")
        if not self.api_keys and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                f"LORAMEM_HOST={self.host!r} is reachable from outside: set LORAMEM_API_KEYS, or bind 127.0.0.1"
            )
        return self

    def _told(self, name: str, rule: str, other: str) -> str:
        one, two = (f"{variable(each)}={getattr(self, each):.10g}" for each in (name, other))
        return f"{one} {rule} {two}"

    @cached_property
    def home_path(self) -> Path:
        return self.home.expanduser().resolve()

    @property
    def adapters_path(self) -> Path:
        return self.home_path / "adapters"

    @property
    def jobs_path(self) -> Path:
        """Where unfinished jobs keep what a later attempt goes on from."""
        return self.home_path / "jobs"

    @property
    def cache_path(self) -> Path:
        return self.home_path / "cache"

    @property
    def trainer_gpu_share(self) -> float:
        """Of the GPU's memory, 0 to 1."""
        if self.trainer_gpu_memory_fraction == "auto":
            return max(0.05, 0.95 - self.gpu_memory_fraction)
        return self.trainer_gpu_memory_fraction

    def speculative_tokens_on(self, device: Literal["cpu", "gpu"]) -> int:
        """By default none on a GPU, where it has not been measured."""
        if self.speculative_tokens == "auto":
            return SPECULATIVE_TOKENS if device == "cpu" else 0
        return self.speculative_tokens

    @property
    def sqlalchemy_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home_path / 'loramem.db'}"

    @property
    def gateway_url(self) -> str:
        """Where the gateway is reached from this machine: "every address" is none to connect to."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def writer_base_url(self) -> str:
        """OpenAI root of the writer, ending in /v1."""
        return self.writer_url or f"{self.gateway_url}/v1"

    @property
    def writer_key(self) -> str:
        """Bearer key for the writer; the gateway's own endpoint takes any of the gateway's keys."""
        own = self.api_keys[0].get_secret_value() if self.api_keys and not self.writer_url else ""
        return self.writer_api_key.get_secret_value() or own


def load_settings(**overrides: object) -> Settings:
    """Read the environment; raises `SettingsError` with every wrong key, its value and the rule.

    Of names that are no setting the log warns, or the standard error where nobody has set up a log yet.
    """
    for line in _unknown_variables():
        log.warning("%s", line)
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"  {_explain(item)}" for item in error.errors()]
        raise SettingsError("loramem: wrong settings\n" + "\n".join(lines)) from None


def variable(name: str) -> str:
    """Of a setting, in the environment."""
    return f"{PREFIX}{name.upper()}"


def masked(text: str) -> str:
    """Without the password, if it is a URL that has one."""
    return _PASSWORD.sub(MASK, text)


def _unknown_variables() -> list[str]:
    """What to say of each; not its value, which may be a key under a name that is misspelt."""
    known = [*map(variable, Settings.model_fields), *OTHER_VARIABLES]
    given = [name for name in sorted(os.environ) if name.upper().startswith(PREFIX)]
    unknown = [name for name in given if not any(fnmatchcase(name.upper(), pattern) for pattern in known)]
    return [f"{name}: there is no such setting, it is ignored; {_nearest(name.upper(), known)}" for name in unknown]


def _nearest(name: str, known: list[str]) -> str:
    """Compared without the prefix, by which all are alike."""
    found = get_close_matches(name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], n=1)
    return f"did you mean {PREFIX}{found[0]}?" if found else "`loramem settings --markdown` lists all"


def _explain(item: object) -> str:
    assert isinstance(item, dict)
    rule = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return rule
    name = str(item["loc"][0])
    return f"{variable(name)}={_shown(name, item['input'])}: {rule}"


def _shown(name: str, value: object) -> str:
    annotation = Settings.model_fields[name].annotation
    if SecretStr in (annotation, *get_args(annotation)):
        return MASK
    if name == "database_url":  # it may be no URL, and then anything in it the password
        return repr(re.sub(r"(?s)(:/*).+", rf"\1{MASK}", str(value)))
    return repr(masked(value) if isinstance(value, str) else value)
