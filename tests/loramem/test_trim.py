"""What TIES keeps: as PEFT has it, and the same from the file beside the weights as from the weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft.utils.merge_utils import magnitude_based_pruning
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from loramem.store import WEIGHTS, AdapterStore
from loramem.trim import MASK, STORED_DENSITY, keep_mask, write_mask
from server.engine.published import PublishedAdapter, Trim, as_tensor, open_published
from tests.server.engine.peft_merges import Adapter, publish

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = st.sampled_from([torch.float32, torch.bfloat16])
A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"
HALF = Trim("magnitude", STORED_DENSITY)


def crowded(shape: tuple[int, int], seed: int, kind: torch.dtype = torch.bfloat16) -> Tensor:
    """None is zero, and most have a magnitude that others have too."""
    noise = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, shape, generator=noise) * 2 - 1
    return (signs * torch.randint(1, 6, shape, generator=noise) / 8).to(kind)


def kept_by_peft(tensor: Tensor, density: float) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = (magnitude_based_pruning(tensor, density) != 0).flatten().numpy()
    return kept


@settings(max_examples=100)
@given(
    st.integers(1, 64),
    st.integers(1, 64),
    st.floats(0, 1, exclude_min=True),
    st.integers(0, 10**6),
    KINDS,
    st.booleans(),
)
@example(15, 30, 0.06, 0, torch.float32, False)
def test_keeps_what_peft_keeps_to_the_choice_among_equals(
    rows: int, columns: int, density: float, seed: int, kind: torch.dtype, are_crowded: bool
) -> None:
    torch.manual_seed(seed)
    tensor = crowded((rows, columns), seed, kind) if are_crowded else torch.randn(rows, columns).exp().to(kind)
    kept = keep_mask(tensor, density)
    assert kept.sum() == int(density * (rows * columns))  # in this order: rounding is PEFT's too
    assert np.array_equal(kept, kept_by_peft(tensor, density))


def test_keeps_the_largest() -> None:
    kept = keep_mask(torch.tensor([[3.0, -1.0], [0.5, -4.0]]), 0.5)
    assert kept.tolist() == [True, False, False, True]


def test_a_zero_may_be_kept_and_stays_zero() -> None:
    tensor = torch.tensor([0.0, -0.0, 2.0, 0.0])
    kept = keep_mask(tensor, 0.75)
    assert kept.sum() == 3
    assert torch.equal(tensor * torch.from_numpy(kept), magnitude_based_pruning(tensor, 0.75))


def test_a_density_of_less_than_one_entry_keeps_none() -> None:
    assert not keep_mask(torch.ones(3, 3), 0.1).any()


# the file beside the weights


def adapter_of(kind: torch.dtype) -> Adapter:
    """Of 39 entries, so that the last byte of the mask is not full; B is not as long as A."""
    return Adapter({A: crowded((3, 8), 1, kind), B: crowded((5, 3), 2, kind)}, rank=3, alpha=6)


def with_mask(folder: Path) -> None:
    write_mask(folder, folder / WEIGHTS)


def opened(root: Path, adapter: Adapter, also: Callable[[Path], None]) -> PublishedAdapter:
    stored = publish(AdapterStore(root), "ada_1", adapter, also)
    return open_published(AdapterStore(root), "ada_1", stored.sha256)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_stored_mask_trims_as_the_weights_themselves_do(tmp_path: Path, kind: torch.dtype) -> None:
    masked = opened(tmp_path, adapter_of(kind), with_mask)
    assert masked.mask is not None
    trimmed = masked.flat(HALF)
    assert np.array_equal(trimmed, replace(masked, mask=None).flat(HALF))
    by_peft = {name: magnitude_based_pruning(tensor, 0.5) for name, tensor in adapter_of(kind).tensors.items()}
    for name, tensor in masked.layout.views(as_tensor(trimmed)).items():
        assert torch.equal(tensor, by_peft[name])


def test_a_mask_follows_the_order_of_the_file_not_of_the_names(tmp_path: Path) -> None:
    adapter = adapter_of(torch.bfloat16)
    masked = opened(tmp_path, adapter, rewritten_backwards(adapter))
    assert masked.layout.names == (B, A)
    assert np.array_equal(masked.flat(HALF), replace(masked, mask=None).flat(HALF))
    trimmed = masked.layout.views(as_tensor(masked.flat(HALF)))
    assert torch.equal(trimmed[A], magnitude_based_pruning(adapter.tensors[A], 0.5))
    assert torch.equal(trimmed[B], magnitude_based_pruning(adapter.tensors[B], 0.5))


def rewritten_backwards(adapter: Adapter) -> Callable[[Path], None]:
    """A sound safetensors file whose header names A first and whose data begin with B."""

    def rewrite(folder: Path) -> None:
        data, header = b"", {}
        for name in (B, A):
            bits = adapter.tensors[name].view(torch.uint16).numpy().tobytes()
            offsets = [len(data), len(data) + len(bits)]
            header[name] = {"dtype": "BF16", "shape": list(adapter.tensors[name].shape), "data_offsets": offsets}
            data += bits
        text = json.dumps({name: header[name] for name in (A, B)}).encode()
        text += b" " * (-len(text) % 8)
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)
        with_mask(folder)

    return rewrite


def test_the_stored_mask_is_what_its_density_is_trimmed_by(tmp_path: Path) -> None:
    masked = opened(tmp_path, adapter_of(torch.bfloat16), nothing_kept)
    assert not masked.flat(HALF).any()


@pytest.mark.parametrize("density", [0.1, 0.49, 0.51, 0.9])
def test_other_densities_are_found_from_the_weights(tmp_path: Path, density: float) -> None:
    adapter = adapter_of(torch.bfloat16)
    masked = opened(tmp_path, adapter, nothing_kept)
    trimmed = masked.layout.views(as_tensor(masked.flat(Trim("magnitude", density))))
    for name, tensor in adapter.tensors.items():
        assert torch.equal(trimmed[name], magnitude_based_pruning(tensor, density))


def nothing_kept(folder: Path, density: float = STORED_DENSITY) -> None:
    """A mask that no weights have, to see who looks at it."""
    with_mask(folder)
    nothing = np.zeros_like(load_file(folder / MASK)["keep"])
    save_file({"keep": nothing}, folder / MASK, metadata={"density": str(density)})


def test_a_mask_of_another_density_than_ours_is_not_used(tmp_path: Path) -> None:
    foreign = opened(tmp_path, adapter_of(torch.bfloat16), partial(nothing_kept, density=0.25))
    assert foreign.mask is None
    assert foreign.flat(Trim("magnitude", STORED_DENSITY)).any()


@pytest.mark.parametrize("trim", [Trim(), Trim("magnitude", 1.0)])
def test_without_a_trim_the_mask_is_not_asked(tmp_path: Path, trim: Trim) -> None:
    masked = opened(tmp_path, adapter_of(torch.bfloat16), nothing_kept)
    assert np.array_equal(masked.flat(trim), masked.values)


def test_the_mask_is_a_bit_for_each_entry_and_says_for_which_density(tmp_path: Path) -> None:
    opened(tmp_path, adapter_of(torch.bfloat16), with_mask)
    with safe_open(tmp_path / "ada_1" / MASK, framework="numpy") as file:
        assert list(file.keys()) == ["keep"]
        assert file.get_tensor("keep").dtype == np.uint8
        assert file.get_tensor("keep").shape == (5,)  # 39 bits
        assert file.metadata() == {"density": "0.5"}
