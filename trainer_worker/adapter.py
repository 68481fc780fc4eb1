"""A trained adapter in memory, and its form on disk: a plain PEFT folder."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loramem.store import WEIGHTS
from loramem.trim import write_mask

if TYPE_CHECKING:
    import torch

ALPHA_PER_RANK = 2
_LAYER = re.compile(r"\.(\d+)\.")
Facts = dict[str, float | int | str | bool]


@dataclass(frozen=True)
class TrainedAdapter:
    """`weights` are float32 on the CPU under PEFT's names; `facts` go into the manifest."""

    rank: int
    weights: "dict[str, torch.Tensor]" = field(repr=False)
    facts: Facts
    base_name: str = ""

    @property
    def alpha(self) -> int:
        return ALPHA_PER_RANK * self.rank

    @property
    def target_modules(self) -> list[str]:
        return module_names(self.weights)

    @property
    def layers(self) -> list[int] | None:
        """Which of the base's layers are adapted; None when a module outside of them is too, for then PEFT must go by
        `target_modules` alone."""
        depths = sorted({depth_of(name) for name in self.weights})
        return depths if depths[0] >= 0 else None

    def save(self, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` (bfloat16), as PEFT and vLLM read them, and what
        TIES keeps of it (`loramem.trim`)."""
        import torch
        from peft import LoraConfig
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in self.weights.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        write_mask(folder, folder / WEIGHTS)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=self.target_modules,
            layers_to_transform=self.layers,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base_name,
            inference_mode=True,
        )
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")


def depth_of(name: str) -> int:
    """Index of the transformer layer that a module belongs to; -1 outside of any."""
    found = _LAYER.search(f".{name}.")
    return int(found[1]) if found else -1


def module_names(weights: Iterable[str]) -> list[str]:
    """The last part of each adapted module's name: q_proj, up_proj, ..."""
    return sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights})
