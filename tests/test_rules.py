"""The rules of the house, each with the reason in its message."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from loramem.settings import Settings
from tests.rules import ROOT, Import, cycles, imports, imports_of, is_in, modules

HEAVY = ("torch", "vllm", "fastapi", "transformers", "faiss", "sentence_transformers", "peft")
STEPS = {
    "server": ("upload", "route", "decide", "readiness", "context", "merge", "select", "generate", "stream"),
    "trainer_worker": ("synthesize", "train", "examine", "publish", "index"),
}
CONDUCTORS = {"server": "server.answer", "trainer_worker": "trainer_worker.build"}
LONGEST_FILE = 400

# Assembled, because this file is searched as well.
REGISTRY_HOSTS = ["py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org", "conda" + ".anaconda.org"]
REGISTRY_HOSTS += ["registry." + "npmjs.org", "g" + "hcr.io", "mirrors" + ".aliyun.com", "test.py" + "pi.org"]
ALLOWED_HOST = ("deploy/setup.sh", "download.py" + "torch.org")


def tracked_files() -> list[Path]:
    """Files under version control that are here; every file of the packages where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else [str(file) for file in modules().values()]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def tracked_text() -> list[tuple[str, str]]:
    files = [(str(file.relative_to(ROOT)), file.read_bytes()) for file in tracked_files()]
    return [(name, content.decode(errors="replace")) for name, content in files if b"\0" not in content]


def refuse(found: list[Import], why: str) -> None:
    assert not found, "\n".join([why, *(f"  {item}" for item in found)])


def test_gateway_and_worker_do_not_know_each_other() -> None:
    pairs = (("server", "trainer_worker"), ("trainer_worker", "server"))
    found = [
        item for item in imports() for one, other in pairs if is_in(item.importer, one) and is_in(item.imported, other)
    ]
    refuse(found, "server and trainer_worker meet in the database and over HTTP alone; shared types belong in loramem:")


def test_loramem_knows_neither_side() -> None:
    found = [
        item
        for item in imports()
        if is_in(item.importer, "loramem")
        and (is_in(item.imported, "server") or is_in(item.imported, "trainer_worker"))
    ]
    refuse(found, "loramem is what both sides agree on, so it imports neither:")


def test_loramem_imports_nothing_heavy_at_module_level() -> None:
    found = [
        item
        for item in imports()
        if item.kind == "top" and is_in(item.importer, "loramem") and item.imported.split(".")[0] in HEAVY
    ]
    refuse(found, "import it inside the function that needs it, so that the command line starts at once:")


@pytest.mark.parametrize("package", STEPS)
def test_steps_do_not_import_each_other(package: str) -> None:
    steps = {f"{package}.{step}" for step in STEPS[package]}
    found = [item for item in imports() if item.imported in steps and item.importer in steps and item.kind != "typing"]
    refuse(found, "steps of a flow are siblings; the conductor hands one's result to the next:")


@pytest.mark.parametrize("package", STEPS)
def test_only_the_conductor_runs_the_steps(package: str) -> None:
    steps = {f"{package}.{step}" for step in STEPS[package]}
    found = [
        item
        for item in imports()
        if item.imported in steps and item.kind != "typing" and not may_import_steps(item.importer, package)
    ]
    refuse(
        found, "only the conductor, and what wires it up or calls it, imports a step; types they share go elsewhere:"
    )


def may_import_steps(module: str, package: str) -> bool:
    starts = (f"{package}.app", f"{package}.gateway", f"{package}.__main__", f"{package}.consume")
    return module == CONDUCTORS[package] or module in starts or is_in(module, f"{package}.api")


@pytest.mark.parametrize("package", STEPS)
def test_the_conductor_names_the_steps(package: str) -> None:
    """Except `upload`, a flow of its own, and `stream`, the shape of a reply."""
    named = {item.imported for item in imports() if item.importer == CONDUCTORS[package] and item.kind != "typing"}
    missing = [step for step in STEPS[package] if step not in ("upload", "stream") and f"{package}.{step}" not in named]
    assert not missing, f"{CONDUCTORS[package]} does not name the steps {missing}"


def test_the_engine_does_not_know_http() -> None:
    found = [
        item
        for item in imports()
        if is_in(item.importer, "server.engine")
        and (item.imported.split(".")[0] in ("fastapi", "starlette", "uvicorn") or is_in(item.imported, "server.api"))
    ]
    refuse(found, "server/engine holds what touches vLLM, server/api what touches HTTP:")


def test_only_the_engine_imports_vllm() -> None:
    found = [
        item
        for item in imports()
        if item.imported.split(".")[0] == "vllm" and not is_in(item.importer, "server.engine")
    ]
    refuse(found, "everything that touches vLLM stands in server/engine:")


def test_no_import_cycles() -> None:
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for item in imports():
        if item.imported in edges and item.imported != item.importer:
            edges[item.importer].add(item.imported)
    found = [" -> ".join(path) for path in cycles(edges)]
    assert not found, "import cycles:\n" + "\n".join(found)


def test_no_file_is_longer_than_anybody_reads() -> None:
    code = [file for file in tracked_files() if file.suffix in (".py", ".sh")]
    long = {
        str(file.relative_to(ROOT)): count
        for file in code
        if (count := len(file.read_text().splitlines())) > LONGEST_FILE
    }
    assert not long, f"split these, at most {LONGEST_FILE} lines a file: {long}"


def test_nothing_loads_a_pickle() -> None:
    found = []
    for file in (file for file in tracked_files() if file.suffix == ".py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and unpickles(node):
                found.append(f"{file.relative_to(ROOT)}, line {node.lineno}")
    assert not found, f"a pickle runs code when it is read; adapters are safetensors, the rest is JSON: {found}"


def unpickles(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name.split(".")[0] in ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"):
        return name.split(".")[-1] in ("load", "loads", "Unpickler", "open")
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in ("torch.load", "numpy.load", "np.load"):
        return given.get("weights_only") != "True" if name == "torch.load" else given.get("allow_pickle") == "True"
    return False


def test_no_package_registry_is_named() -> None:
    found = []
    for name, text in tracked_text():
        lowered = text.lower()
        found += [f"{name}: {host}" for host in REGISTRY_HOSTS if host in lowered and (name, host) != ALLOWED_HOST]
    assert not found, f"packages come from wherever pip is set to look: {found}"


def test_no_path_of_somebodys_machine_is_named() -> None:
    home = re.compile(r"(?<![\w.~-])/(?:home|Users|work)/[a-z][\w.-]*/")
    found = [f"{name}: {match[0]}" for name, text in tracked_text() if (match := home.search(text))]
    assert not found, f"paths belong in settings: {found}"


def test_every_setting_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [name for name in Settings.model_fields if f"`LORAMEM_{name.upper()}`" not in readme]
    assert not missing, f"run `make readme`: {missing}"


def test_every_setting_has_a_meaning() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


# The checks check: what each rule looks for is found.


def test_imports_are_found_with_their_kind() -> None:
    source = """
import torch
from . import route
from server.merge import recipe_of
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import vllm
def load():
    import faiss
"""
    found = {(item.imported, item.kind) for item in imports_of("server.answer", source)}
    assert {("torch", "top"), ("server.merge", "top"), ("vllm", "typing"), ("faiss", "lazy")} <= found
    assert ("server.route", "top") in found


def test_a_cycle_is_found_and_a_diamond_is_none() -> None:
    assert cycles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        ("pickle.load(f)", True),
        ("torch.load(f)", True),
        ("torch.load(f, weights_only=True)", False),
        ("np.load(f)", False),
        ("np.load(f, allow_pickle=True)", True),
        ("json.load(f)", False),
    ],
)
def test_unpickling_is_recognised(call: str, verdict: bool) -> None:
    expression = ast.parse(call, mode="eval").body
    assert isinstance(expression, ast.Call)
    assert unpickles(expression) is verdict
