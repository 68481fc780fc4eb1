"""What the source says about itself: its modules, what each imports and where. By syntax tree; nothing is imported."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("loramem", "server", "trainer_worker")


@dataclass(frozen=True)
class Import:
    """One imported module. `kind`: `top` runs at import, `lazy` inside a function, `typing` never."""

    importer: str
    imported: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


@cache
def modules() -> dict[str, Path]:
    """Dotted name to file, of everything in the three packages."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(part for part in parts if part != "__init__")] = file
    return found


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, file in modules().items() for found in imports_of(name, file.read_text()))


def imports_of(name: str, source: str) -> Iterator[Import]:
    yield from _walk(name, ast.parse(source), "top")


def _walk(name: str, node: ast.AST, kind: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(name, alias.name, child.lineno, kind)
        elif isinstance(child, ast.ImportFrom):
            yield from _from(name, child, kind)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(name, child, "lazy" if kind == "top" else kind)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from _walk(name, child, "typing")
        else:
            yield from _walk(name, child, kind)


def _from(name: str, node: ast.ImportFrom, kind: str) -> Iterator[Import]:
    """`from server import route` imports server.route; `from server.route import Route` imports server.route."""
    base = node.module or ""
    if node.level:
        parent = name.split(".")[: -node.level]
        base = ".".join([*parent, base] if base else parent)
    targets = {f"{base}.{alias.name}" for alias in node.names} & set(modules())
    for target in sorted(targets or {base}):
        yield Import(name, target, node.lineno, kind)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """One path for each import cycle that a depth-first walk meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            for following in sorted(edges.get(node, ())):
                visit(following, [*path, node])
            done.add(node)

    for start in sorted(edges):
        visit(start, [])
    return found
