import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from benchmarks.q15_shapes import SHAPES, OtherModel, config_of, sizes_of, write_dummy
from tests.trainer_worker.tiny import save_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("words")))


@pytest.mark.parametrize(
    ("shape", "parameters"), [("llama-3.1-8b", 8_030_261_248), ("smollm2-135m", 134_515_008), ("tiny", 3_219_776)]
)
def test_a_shape_has_as_many_parameters_as_its_model(shape: str, parameters: int) -> None:
    assert sum(prod(size) for size in sizes_of(config_of(shape)).values()) == parameters


def test_a_dummy_loads_with_its_own_weights_and_does_not_stop_by_itself(tmp_path: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write_dummy(tmp_path / "dummy", "tiny", tokenizer, seed=3, shard_bytes=40_000)
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[-1] == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == 2 * 3_219_776

    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == SHAPES["tiny"]["vocab_size"]
    assert model.model.layers[1].mlp.up_proj.weight.float().std().item() == pytest.approx(0.02, rel=0.05)
    assert model.generation_config.eos_token_id is None

    read = AutoTokenizer.from_pretrained(folder)
    assert read.get_vocab() == tokenizer.get_vocab()
    prompt = read("who built the mill ?", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=64, do_sample=False, pad_token_id=0)[
        0, prompt.input_ids.shape[1] :
    ]
    assert len(answer) == 64
    assert not set(answer.tolist()) & set(read.all_special_ids)
    assert max(answer.tolist()) < len(read)


def test_a_model_that_is_there_is_kept_and_another_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    folder = write_dummy(tmp_path, "tiny", tokenizer, seed=0)
    (weights,) = folder.glob("*.safetensors")
    written = weights.read_bytes()
    write_dummy(tmp_path, "tiny", tokenizer, seed=1)
    assert weights.read_bytes() == written
    with pytest.raises(OtherModel, match=r"differs from smollm2-135m in .*'hidden_size'"):
        write_dummy(tmp_path, "smollm2-135m", tokenizer, seed=0)


def test_weights_follow_the_seed(tmp_path: Path, tokenizer: Any) -> None:
    drawn = [
        next(write_dummy(tmp_path / name, "tiny", tokenizer, seed).glob("*.safetensors")).read_bytes()
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
