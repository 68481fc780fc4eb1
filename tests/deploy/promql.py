"""What is wrong with a PromQL expression, given the metrics that exist: names, labels, values, rates of gauges."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import promql_parser as promql

COUNTED = ("_total", "_bucket", "_sum", "_count")
OF_A_COUNTER = ("rate", "increase", "irate")
WITHOUT_LABELS = ("vector", "scalar", "time")


@dataclass(frozen=True)
class Known:
    """`metrics`: labels by the name of a sample. `values`: those of a label, where the set is closed."""

    metrics: Mapping[str, frozenset[str]]
    values: Mapping[str, frozenset[str]]


def problems(text: str, known: Known) -> list[str]:
    """Empty for an expression that can have data. Raises `ValueError` for what is no PromQL."""
    return list(_walk(promql.parse(text), known))


def labels_of(text: str, known: Known) -> frozenset[str]:
    """Labels that the expression's result can have."""
    return _labels(promql.parse(text), known)


def selectors(text: str) -> list[str]:
    """Names of the metrics that it selects."""
    found: list[str] = []

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.VectorSelector) and node.name:
            found.append(node.name)
        return True

    promql.walk(promql.parse(text), visit)
    return found


def _walk(node: promql.Expr, known: Known) -> Iterator[str]:
    match node:
        case promql.VectorSelector():
            yield from _selector(node, known)
        case promql.MatrixSelector():
            yield from _selector(node.vector_selector, known)
        case promql.AggregateExpr():
            yield from _walk(node.expr, known)
            missing = set(node.modifier.labels if node.modifier else ()) - _labels(node.expr, known)
            yield from (f"{name} of `by` is no label of {node.expr.prettify()}" for name in sorted(missing))
        case promql.Call():
            yield from _call(node, known)
        case promql.BinaryExpr():
            for side in (node.lhs, node.rhs):
                yield from _walk(side, known)
                missing = set(_matching(node)) - _labels(side, known)
                yield from (f"{name} of `on` is no label of {side.prettify()}" for name in sorted(missing))
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from _walk(node.expr, known)


def _selector(node: promql.VectorSelector, known: Known) -> Iterator[str]:
    labels = known.metrics.get(node.name or "")
    if labels is None:
        yield f"nothing exports {node.name}"
        return
    for matcher in node.matchers.matchers:
        if matcher.name not in labels:
            yield f"{matcher.name} is no label of {node.name}"
        elif matcher.name in known.values and matcher.value != ".*":
            wrong = set(matcher.value.split("|")) - known.values[matcher.name]
            yield from (f"{value} is no value of {matcher.name}" for value in sorted(wrong))


def _call(node: promql.Call, known: Known) -> Iterator[str]:
    for argument in node.args:
        yield from _walk(argument, known)
    if node.func.name in OF_A_COUNTER:
        counted = node.args[0].vector_selector.name
        if not counted.endswith(COUNTED):
            yield f"{node.func.name} of {counted}, which is no counter"
    if node.func.name == "histogram_quantile" and "le" not in _labels(node.args[1], known):
        yield f"a quantile without le: {node.prettify()}"


def _labels(node: promql.Expr, known: Known) -> frozenset[str]:
    match node:
        case promql.VectorSelector():
            return known.metrics.get(node.name or "", frozenset())
        case promql.MatrixSelector():
            return _labels(node.vector_selector, known)
        case promql.AggregateExpr():
            return frozenset(node.modifier.labels if node.modifier else ())
        case promql.Call():
            return _labels_of_call(node, known)
        case promql.BinaryExpr():
            return _labels_of_both(node, known)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return _labels(node.expr, known)
    return frozenset()


def _labels_of_call(node: promql.Call, known: Known) -> frozenset[str]:
    if node.func.name in WITHOUT_LABELS:
        return frozenset()
    inner = frozenset[str]().union(*(_labels(argument, known) for argument in node.args))
    return inner - {"le"} if node.func.name == "histogram_quantile" else inner


def _labels_of_both(node: promql.BinaryExpr, known: Known) -> frozenset[str]:
    left, right = _labels(node.lhs, known), _labels(node.rhs, known)
    if str(node.op) == "or" or isinstance(node.lhs, promql.NumberLiteral):
        return left | right
    return left


def _matching(node: promql.BinaryExpr) -> list[str]:
    return node.modifier.matching.labels if node.modifier and node.modifier.matching else []


def shown(legend: str) -> set[str]:
    """Labels whose values are in a series' name."""
    return set(re.findall(r"{{\s*(\w+)\s*}}", legend))
