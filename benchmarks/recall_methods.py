"""Ways to answer, the rows of the paper's Table 2 among them, as what `POST /query` is asked.

A method asks one of three corpora: `chunk`, each document as the server cuts it; `document`, each with one adapter for
all of it; `joined`, all of them as one document with one adapter. `NAME:oracle` is NAME with the right document named;
`NAME:oracle3`, of a method that answers from three adapters, with the two besides that the router puts first among the
others: what is measured is how three become one answer. Where each has one chunk, each has one of the three places;
a document of several chunks may take more, and `router_inside` is how often the right one has kept a place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from loramem.records import AskedMode

Corpus = Literal["chunk", "document", "joined"]
ORACLES = {"": 0, ":oracle": 1, ":oracle3": 3}
"""Suffix of a name, and how many documents are named."""
REFERENCES = ("rag", "lora", "lora-top3", "lora:oracle")
"""Methods that paired differences are taken to, where they are asked."""


@dataclass(frozen=True)
class Method:
    """`oracle`: how many documents are named in the question's `document_ids`, the right one first; 0 names none."""

    name: str
    mode: AskedMode
    options: Mapping[str, Any] = field(default_factory=dict)
    corpus: Corpus = "chunk"
    oracle: int = 0

    @property
    def routes(self) -> bool:
        """Whether the server has to find the right document by itself, among all or among those named."""
        return self.mode != "base" and self.corpus == "chunk" and self.oracle != 1

    @property
    def whole_text(self) -> bool:
        """Whether documents go into the prompt from their beginning, as far as the window holds."""
        return self.mode == "icl" or self.options.get("context") == "icl"

    @property
    def can_refuse(self) -> bool:
        """Whether it may say that nothing stored is about the question."""
        return self.mode == "auto"

    @property
    def takes_unanswerable(self) -> bool:
        """Of a question without an answer there is no right document to name."""
        return self.can_refuse and self.routes


TOP_1: dict[str, Any] = {"top_k": 1}
TOP_3: dict[str, Any] = {"top_k": 3, "compose": "merge", "merge": {"method": "ties"}}
"""As in the paper."""
SELECT = {"top_k": 3, "compose": "select"}
TEXT = {"context": "rag", "truncate": True}
WHOLE_TEXT = {"context": "icl", "truncate": True}
"""A document that does not fit the window is cut, as the alternative is no answer."""

STRENGTHS = (1.5, 2, 3)
"""Beside 1. What a strength means for the weights of k adapters: the methods that elect signs have it as the weight of
each (1: each counts in full), the others its k-th part (1: the weights add up to 1, k: each counts in full)."""
MERGES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "cat": {"method": "cat"},
    "dare": {"method": "dare_ties"},
    "ties-x0.33": {"method": "ties", "strength": 1 / 3},  # weights 1/k, as linear averaging has them
    **{
        f"{method}-x{strength:g}": {"method": method, "strength": strength}
        for method in ("ties", "linear", "cat")
        for strength in STRENGTHS
    },
    "product-ties": {"method": "product_ties"},
    "product-linear": {"method": "product_linear"},
}
"""Beside TIES with weights 1, which is `TOP_3`; the server merges by `cat` unless told otherwise."""

METHODS = {
    method.name: method
    for method in (
        Method("base", "base"),
        Method("single", "lora", TOP_1, "document", oracle=1),
        Method("lora", "lora", TOP_1),
        Method("lora-top3", "lora", TOP_3),
        Method("icl", "icl", {"truncate": True}),
        Method("rag", "rag", {"truncate": True}),
        Method("single-icl", "hybrid", TOP_1 | WHOLE_TEXT, "document", oracle=1),
        Method("single-rag", "hybrid", TOP_1 | TEXT, "document", oracle=1),
        Method("hybrid-icl", "hybrid", TOP_1 | WHOLE_TEXT),
        Method("hybrid", "hybrid", TOP_1 | TEXT),
        Method("hybrid-icl-top3", "hybrid", TOP_3 | WHOLE_TEXT),
        Method("hybrid-top3", "hybrid", TOP_3 | TEXT),
        Method("lora-select", "lora", SELECT),
        Method("hybrid-select", "hybrid", SELECT | TEXT),
        Method("joined", "lora", TOP_1, "joined"),
        Method("lora-top2", "lora", TOP_3 | {"top_k": 2}),
        Method("lora-top5", "lora", TOP_3 | {"top_k": 5}),
        *(Method(f"lora-top3-{name}", "lora", TOP_3 | {"merge": merge}) for name, merge in MERGES.items()),
        Method("lora-auto", "lora", {"top_k": "auto"}),
        Method("auto", "auto"),
    )
}
GROUPS = {
    "table2": tuple(METHODS)[:12],
    "routing": ("lora", "lora:oracle", "joined"),
    "merges": ("lora", "lora-top3", *(f"lora-top3-{name}" for name in MERGES), "joined"),
    "counts": ("lora", "lora-top2", "lora-top3", "lora-top5"),
    "oracle": ("lora:oracle", "lora-select:oracle3", "lora-top3:oracle3"),
    "all": tuple(METHODS),
}


def chosen_methods(names: Sequence[str]) -> list[Method]:
    """By name or group, each once. Raises `ValueError` that says what there is."""
    expanded = [name for given in names for name in GROUPS.get(given, (given,))]
    return [_method(name) for name in dict.fromkeys(expanded)]


def _method(name: str) -> Method:
    plain, colon, suffix = name.partition(":")
    method, oracle = METHODS.get(plain), ORACLES.get(colon + suffix)
    if method is None or oracle is None:
        raise ValueError(f"no method is called {name!r}; there are {', '.join([*METHODS, *GROUPS])}")
    if not oracle:
        return method
    if not method.routes:
        raise ValueError(f"{name!r}: {plain} does not look for its document, so none can be named to it")
    if oracle > 1 and method.options.get("top_k") != oracle:
        raise ValueError(f"{name!r}: {plain} is not told to answer from {oracle} adapters; there is {plain}:oracle")
    return replace(method, name=name, oracle=oracle)
