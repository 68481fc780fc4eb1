"""Models of a known shape with random weights: they cost what the real ones cost and say nothing.

A random model must not stop early: the configuration names no end token, and the output rows of special tokens and of
those that the tokenizer does not have are zero, so that greedy decoding never chooses one.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig

SHARD_BYTES = 2 << 30
SPREAD = 0.02
"""Standard deviation of the weights."""
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": LLAMA3_ROPE,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
    },
}


class OtherModel(SystemExit):
    """The folder holds a model of another shape."""


def config_of(shape: str) -> "LlamaConfig":
    """Raises `KeyError` for a shape that is none of `SHAPES`."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPES[shape], architectures=["LlamaForCausalLM"], dtype="bfloat16", bos_token_id=None, eos_token_id=None
    )


def sizes_of(config: "LlamaConfig") -> dict[str, tuple[int, ...]]:
    """Shape of each tensor in a file of such a model, by name."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # a tied head once


def write_dummy(folder: Path, shape: str, tokenizer: Any, seed: int, shard_bytes: int = SHARD_BYTES) -> Path:
    """The folder, which holds bfloat16 safetensors in shards and the tokenizer's files. One that is there is kept.

    The configuration is written last: a folder without one is incomplete. Raises `OtherModel`.
    """
    from transformers import GenerationConfig

    config = config_of(shape)
    if (folder / "config.json").is_file():
        _check_shape(folder, shape)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(folder, sizes_of(config), _Drawn(config, tokenizer, seed), shard_bytes)
    tokenizer.save_pretrained(folder)
    GenerationConfig(do_sample=False).save_pretrained(folder)  # type: ignore[no-untyped-call]
    config.save_pretrained(folder)
    return folder


def _check_shape(folder: Path, shape: str) -> None:
    there = json.loads((folder / "config.json").read_text())
    if different := [name for name, value in SHAPES[shape].items() if there.get(name) != value]:
        raise OtherModel(f"benchmarks.q15: {folder.name} holds a model that differs from {shape} in {different}")


class _Drawn:
    """Weights, drawn one tensor after another."""

    def __init__(self, config: "LlamaConfig", tokenizer: Any, seed: int) -> None:
        import torch

        self._draws = torch.Generator().manual_seed(seed)
        self._head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        special = [token for token in tokenizer.all_special_ids if token < config.vocab_size]
        self._unsaid = [*special, *range(len(tokenizer), config.vocab_size)]

    def tensor(self, name: str, size: tuple[int, ...]) -> "Tensor":
        import torch

        if len(size) == 1:  # the norms
            return torch.ones(size, dtype=torch.bfloat16)
        drawn = torch.empty(size, dtype=torch.bfloat16).normal_(0, SPREAD, generator=self._draws)
        if name == self._head:
            drawn[self._unsaid] = 0
        return drawn


def _write_shards(folder: Path, sizes: Mapping[str, tuple[int, ...]], drawn: _Drawn, shard_bytes: int) -> None:
    from safetensors.torch import save_file

    shards = list(_shards(sizes, shard_bytes))
    files: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: drawn.tensor(name, sizes[name]) for name in names}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(map(_bytes, sizes.values()))}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _shards(sizes: Mapping[str, tuple[int, ...]], shard_bytes: int) -> Iterator[list[str]]:
    """Names, in order, as many as fit; one at least."""
    names: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if names and filled + _bytes(size) > shard_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += _bytes(size)
    yield names


def _bytes(size: tuple[int, ...]) -> int:
    count = 2
    for length in size:
        count *= length
    return count
