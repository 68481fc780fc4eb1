"""What gateway and worker tell each other through rows and files, as small frozen types.

upload  ->  TrainingOptions, QAPair      gateway to worker, through the revision row
job     ->  Progress                     worker to gateway, through the job row and its events
preview ->  PreviewExample               worker to gateway, through the preview row
publish ->  ExamResult, AdapterManifest  worker to gateway, through the adapter row and its folder
query   ->  Source, Recipe               gateway to the engine's worker process, as a LoRA path
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, StringConstraints

Mode = Literal["base", "lora", "rag", "icl", "hybrid"]
AskedMode = Literal["base", "lora", "rag", "icl", "hybrid", "auto"]
"""`auto` leaves the mode to the server."""
MergeMethod = Literal["ties", "linear", "cat", "dare_ties", "dare_linear", "product_ties", "product_linear"]
SignMethod = Literal["total", "frequency"]
Weighting = Literal["uniform", "router"]
Compose = Literal["merge", "select"]
Phase = Literal["waiting", "chunk", "index", "synthesize", "train", "examine", "publish", "done"]
MIXTURES = {"all": ("qa40", "summary8", "rewrite4", "original")}
"""Names for several kinds of training data at once."""
Placement = Literal["late", "early", "all", "ffn", "attention"]
Remedy = Literal["data", "rank", "split"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _items(value: object) -> object:
    """`"summary8+qa40"` and `["summary8", "qa40"]` are the same; names stand for their items."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(item, str) for item in given):
        return given
    items = [item for names in given for item in names.split("+")]
    return [item for name in items for item in MIXTURES.get(name, (name,))]


def _once(items: tuple[str, ...]) -> tuple[str, ...]:
    different = tuple(dict.fromkeys(items))
    if len({item.rstrip("0123456789") for item in different}) < len(different):
        raise ValueError(f"must give one number for each kind, not {'+'.join(items)}")
    if "passages" in different and not any(item.startswith("qa") for item in different):
        raise ValueError("must hold qa for passages: they are the same questions after passages of the text")
    return different


def _servable(value: object) -> object:
    if value == "dora":
        raise ValueError("cannot be dora: vLLM has no place for the magnitudes that DoRA trains beside A and B")
    return value


Item = Annotated[str, StringConstraints(pattern=r"^(?:(?:qa|summary|rewrite)(?:[1-9]\d{0,2})?|passages|original)$")]
Variant = Annotated[Literal["lora", "pissa"], BeforeValidator(_servable)]
Mixture = Annotated[tuple[Item, ...], FailFast(), BeforeValidator(_items), AfterValidator(_once)]


class QAPair(Record):
    """A question about the document and its answer, as the model should give it."""

    question: str = Field(min_length=1, max_length=2000)
    answer: str = Field(min_length=1, max_length=2000)


class TrainingOptions(Record):
    """What a user may ask of the training of one document; `None` takes the server's setting."""

    rank: Literal["auto", 8, 16, 32, 64] | None = Field(
        None, description="rank of the adapters; `auto` takes the least that holds the text"
    )
    max_seconds: float | None = Field(None, gt=0, le=3600, description="training time per adapter")
    formats: Mixture = Field(
        ("qa", "original"),
        min_length=1,
        description="kinds of training data, a list or joined by `+`; a number is how many a chunk: `summary8+qa40`",
    )
    placement: Placement = Field(
        "late",
        description="which layers get an adapter: the upper half, the lower, all; or "
        "of all layers the feed-forward or the attention part alone",
    )
    variant: Variant = Field("lora", description="how an adapter starts: at zero, or from the base's principal parts")
    freeze_a: bool = Field(False, description="train B alone, beside the A that all adapters of the base share")
    distil: float = Field(0.0, ge=0, le=1, description="weight of what the base says with the text before it")
    per: Literal["chunk", "document"] = Field("chunk", description="an adapter for each chunk, or one for all")
    mend: bool = Field(True, description="train weak adapters again once no other job waits")

    def published_rank(self, rank: int) -> int:
        """Of the adapter that training at `rank` gives."""
        return published_rank(self.variant, rank)


def published_rank(variant: Variant, rank: int) -> int:
    """PiSSA's adapter holds what it started from as well, which is taken off it."""
    return 2 * rank if variant == "pissa" else rank


class Progress(Record):
    """Where a job is. `percent` is of the whole job, 0 to 100; `step` counts within the phase."""

    phase: Phase
    step: int = 0
    total_steps: int = 0
    percent: float = 0.0
    loss: float | None = None
    eta_s: float | None = None
    message: str = ""


class PreviewExample(Record):
    """A piece of training data as it would be learnt; `kind` says how it was made."""

    question: str
    answer: str
    kind: str


class Fullness(Record):
    """How much of what an adapter can hold it has to hold, in bits of what the base model did not know."""

    load_bits: float  # the statements of the text, as the base expects them
    stored_bits: float  # what the adapter took off that
    capacity_bits: float  # what an adapter of this size had learnt of more than that, in a training of the usual length
    full: float  # load / capacity; above 1 it wants more training, or a greater rank


class ExamResult(Record):
    """Closed-book result on questions that stayed out of training; shares are 0 to 1."""

    questions: int
    recall: float  # answers that hold the expected one, with the adapter
    base_recall: float  # the same without it
    overlap: float = 0.0  # mean token-F1 of answers against the expected, with the adapter
    base_overlap: float = 0.0  # the same without it
    loss: float  # mean negative log-likelihood per answer token, with the adapter
    harm: float = 0.0  # bits per token by which the base's own answers to unrelated prompts became less likely
    weak: bool
    tried: tuple[Remedy, ...] = ()  # what was done because an earlier attempt was weak
    fullness: Fullness | None = None


class AdapterManifest(Record):
    """`loramem.json` in an adapter's folder: what it is and how to check it."""

    adapter_id: str
    document_id: str
    revision: int
    chunk: int
    base_model: str
    fingerprint: str
    rank: int
    alpha: int
    sha256: dict[str, str]  # file name to hex digest
    exam: ExamResult
    training: dict[str, float | int | str | bool]


class Source(Record):
    """One adapter in a merge. `sha256` pins the weights, so a recipe can never mean two things."""

    adapter_id: str
    sha256: str
    weight: float


MIN_DENSITY = 0.001
"""DARE scales by 1 / density; much less is no longer a merge."""
TRIMS_BY_MAGNITUDE = frozenset({"ties", "product_ties"})
TRIMS_AT_RANDOM = frozenset({"dare_ties", "dare_linear"})
ELECTS_SIGNS = frozenset({"ties", "dare_ties", "product_ties"})
MERGE_OPTIONS: Mapping[str, frozenset[str]] = {
    "density": TRIMS_BY_MAGNITUDE | TRIMS_AT_RANDOM,
    "sign_method": ELECTS_SIGNS,
    "seed": TRIMS_AT_RANDOM,
}
"""Options of a merge, and the methods that each has a meaning for."""


def merged_rank(method: MergeMethod, ranks: Sequence[int]) -> int:
    """Rank of a merge: the sum of the sources' for `cat`, else the greatest."""
    return sum(ranks) if method == "cat" else max(ranks)


class Recipe(Record):
    """A merge by value. Equal recipes are the same merged adapter; sources are kept sorted by adapter id."""

    PATH_PREFIX: ClassVar[str] = "loramem:"
    """Of a LoRA path that is a recipe, where others are folders."""

    method: MergeMethod
    density: float = Field(0.5, ge=MIN_DENSITY, le=1)
    sign_method: SignMethod = "total"
    seed: int = Field(0, ge=0, lt=2**31)
    sources: tuple[Source, ...] = Field(min_length=1, max_length=8)

    @classmethod
    def of(
        cls,
        method: MergeMethod,
        sources: list[Source],
        density: float = 0.5,
        sign_method: SignMethod = "total",
        seed: int = 0,
    ) -> "Recipe":
        """Canonical form: what the method ignores takes its default, sources are sorted, one source is scaled alone."""
        ordered = tuple(sorted(sources, key=lambda source: source.adapter_id))
        given = cls(method=method, density=density, sign_method=sign_method, seed=seed, sources=ordered)
        effective: MergeMethod = method if len(sources) > 1 else "linear"
        kept = {"method", "sources"} | {name for name, methods in MERGE_OPTIONS.items() if effective in methods}
        return cls(**{**given.model_dump(include=kept), "method": effective})

    def canonical(self) -> str:
        """JSON with sorted keys and no spaces."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """sha256 of the canonical JSON, in full: a short one could collide and serve other weights."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def path(self) -> str:
        """As the path of an adapter, by which the engine's worker gets it."""
        return self.PATH_PREFIX + self.canonical()

    @classmethod
    def from_path(cls, path: str) -> "Recipe":
        """Raises pydantic's `ValidationError` for what is no recipe."""
        return cls.model_validate_json(path.removeprefix(cls.PATH_PREFIX))
