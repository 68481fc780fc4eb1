"""Ways to answer, the rows of the paper's Table 2 among them, as what `POST /query` is asked.

A method asks one of three corpora: `chunk`, each document as the server cuts it; `document`, each with one adapter for
all of it; `joined`, all of them as one document with one adapter. `NAME:oracle` is NAME with the right document named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Corpus = Literal["chunk", "document", "joined"]
ORACLE = ":oracle"
REFERENCES = ("rag", "lora", "lora-top3")
"""Methods that paired differences are taken to, where they are asked."""


@dataclass(frozen=True)
class Method:
    """`oracle`: the right document is named in the question's `document_ids`."""

    name: str
    mode: str
    options: Mapping[str, Any] = field(default_factory=dict)
    corpus: Corpus = "chunk"
    oracle: bool = False

    @property
    def routes(self) -> bool:
        """Whether the server has to find the right document by itself."""
        return self.mode != "base" and self.corpus == "chunk" and not self.oracle


TOP_1, TOP_3 = {"top_k": 1}, {"top_k": 3}
SELECT = {"top_k": 3, "compose": "select"}
TEXT = {"context": "rag", "truncate": True}
WHOLE_TEXT = {"context": "icl", "truncate": True}
"""A document that does not fit the window is cut, as the alternative is no answer."""

MERGES = {"linear": "linear", "cat": "cat", "dare": "dare_ties"}
"""Beside TIES, which is the server's default."""

METHODS = {
    method.name: method
    for method in (
        Method("base", "base"),
        Method("single", "lora", TOP_1, "document", oracle=True),
        Method("lora", "lora", TOP_1),
        Method("lora-top3", "lora", TOP_3),
        Method("icl", "icl", {"truncate": True}),
        Method("rag", "rag", {"truncate": True}),
        Method("single-icl", "hybrid", TOP_1 | WHOLE_TEXT, "document", oracle=True),
        Method("single-rag", "hybrid", TOP_1 | TEXT, "document", oracle=True),
        Method("hybrid-icl", "hybrid", TOP_1 | WHOLE_TEXT),
        Method("hybrid", "hybrid", TOP_1 | TEXT),
        Method("hybrid-icl-top3", "hybrid", TOP_3 | WHOLE_TEXT),
        Method("hybrid-top3", "hybrid", TOP_3 | TEXT),
        Method("lora-select", "lora", SELECT),
        Method("hybrid-select", "hybrid", SELECT | TEXT),
        Method("joined", "lora", TOP_1, "joined"),
        Method("lora-top2", "lora", {"top_k": 2}),
        Method("lora-top5", "lora", {"top_k": 5}),
        *(
            Method(f"lora-top3-{name}", "lora", TOP_3 | {"merge": {"method": method}})
            for name, method in MERGES.items()
        ),
        Method("auto", "auto"),
    )
}
GROUPS = {
    "table2": tuple(METHODS)[:12],
    "routing": ("lora", "lora:oracle", "joined"),
    "merges": ("lora", "lora-top3", *(f"lora-top3-{name}" for name in MERGES), "joined"),
    "counts": ("lora", "lora-top2", "lora-top3", "lora-top5"),
    "all": tuple(METHODS),
}


def chosen_methods(names: Sequence[str]) -> list[Method]:
    """By name or group, each once. Raises `ValueError` that says what there is."""
    expanded = [name for given in names for name in GROUPS.get(given, (given,))]
    return [_method(name) for name in dict.fromkeys(expanded)]


def _method(name: str) -> Method:
    plain = name.removesuffix(ORACLE)
    method = METHODS.get(plain)
    if method is None:
        raise ValueError(f"no method is called {name!r}; there are {', '.join([*METHODS, *GROUPS])}")
    if plain == name:
        return method
    if not method.routes:
        raise ValueError(f"{name!r}: {plain} does not look for its document, so none can be named to it")
    return replace(method, name=name, oracle=True)
