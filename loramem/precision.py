"""The type that weights are computed in."""

from typing import Literal

Precision = Literal["bfloat16", "float32"]
ENTRY_BYTES = {"bfloat16": 2, "float32": 4}


def precision() -> Precision:
    """bfloat16, but float32 on a CPU for which PyTorch has no products of it.

    Those are CPUs without AVX-512 (desktops and laptops mostly, servers of AMD before Zen 4), where plain loops take
    their place: a step of training lasts 26 times as long, and 32 tokens after 400 words two and a half times as long
    (decision 0029).
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return "bfloat16" if built_in and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
