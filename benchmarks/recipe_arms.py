"""The arms of `benchmarks.recipes`: training options by name, in groups that belong into one figure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from loramem.records import TrainingOptions


@dataclass(frozen=True)
class Arm:
    """`training` is what is uploaded with every document; the rest is the server's default."""

    name: str
    group: str
    training: dict[str, Any] = field(default_factory=dict)


DEFAULT = Arm("default", "default")
ARMS = (
    DEFAULT,
    *(Arm(f"formats={one}", "formats", {"formats": one}) for one in ("original", "qa40", "summary8", "rewrite4")),
    *(
        Arm(f"formats={one}", "mixtures", {"formats": one})
        for one in ("summary8+qa40", "qa40+original", "rewrite4+qa40", "all")
    ),
    *(Arm(f"distil={one:g}", "objective", {"distil": one}) for one in (0.0, 0.5, 1.0)),
    *(Arm(f"placement={one}", "placement", {"placement": one}) for one in ("late", "early", "all", "ffn", "attention")),
    *(Arm(f"variant={one}", "variant", {"variant": one}) for one in ("lora", "pissa")),
    Arm("freeze_a", "variant", {"freeze_a": True}),
    *(Arm(f"rank={one}", "rank", {"rank": one}) for one in (8, 16, 32, "auto")),
)
"""`formats` are the rows of the paper's Table 1, `mixtures` those of its Figure 4."""
SMOKE = (DEFAULT, ARMS[1])


def chosen(names: Collection[str] | None) -> list[Arm]:
    """The default and the arms named, by their own name or their group's; all without names.

    Raises `ValueError` for a name that is neither.
    """
    if names is None:
        return list(ARMS)
    known = {name for arm in ARMS for name in (arm.name, arm.group)}
    if unknown := sorted(set(names) - known):
        raise ValueError(f"no arm or group is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [arm for arm in ARMS if arm is DEFAULT or arm.name in names or arm.group in names]


def same_as(arm: Arm, earlier: Sequence[Arm]) -> str | None:
    """The earlier arm with the same options once defaults are filled in, which need not be trained twice."""
    options = TrainingOptions.model_validate(arm.training)
    for other in earlier:
        if TrainingOptions.model_validate(other.training) == options:
            return other.name
    return None
