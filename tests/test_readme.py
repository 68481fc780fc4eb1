"""What the README says is so."""

import json
import re
import subprocess
from functools import cache

import pytest
import typer
from pydantic import BaseModel

from loramem import cli
from loramem.settings import Settings
from server.api.schemas import AcceptedOut, AnswerOut
from tests.rules import ROOT

README = (ROOT / "README.md").read_text()
OTHER_VARIABLES = {"LORAMEM_PROFILE", "LORAMEM_URL", "LORAMEM_API_KEY", "LORAMEM_BENCH_DATA"}


@cache
def code_blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def spans() -> list[str]:
    return re.findall(r"`([^`\n]+)`", README)


def test_it_opens_with_the_two_commands() -> None:
    first = code_blocks()[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make run", "make test"]
    assert README.index(code_blocks()[0]) < 40


def test_its_commands_are_valid_shell() -> None:
    for block in code_blocks():
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_its_settings_table_is_the_one_of_the_settings() -> None:
    table = "\n".join(cli.settings_table())
    assert table in README, "run: make readme"


def test_every_variable_it_names_exists() -> None:
    known = {f"LORAMEM_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    named = set(re.findall(r"LORAMEM_[A-Z_]+", README))
    assert named - known == set()


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join([*spans(), *code_blocks()])))
    assert named <= targets
    listed = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert listed - named <= {"help"}


def test_every_loramem_command_is_there_and_no_other() -> None:
    commands = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    named = {span.split()[1] for span in spans() if span.startswith("loramem ")}
    assert named == commands


def test_every_route_is_there_and_no_other() -> None:
    from server.app import create_app

    listed = set(re.findall(r"^\| `((?:GET|POST|PUT|DELETE) /\S*)` \|", README, re.MULTILINE))
    paths = create_app(Settings(api_keys=())).openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert listed == served


@pytest.mark.parametrize(("name", "schema"), [("upload", AcceptedOut), ("query", AnswerOut)])
def test_the_replies_it_shows_are_such_as_the_server_gives(name: str, schema: type[BaseModel]) -> None:
    (shown,) = re.findall(rf"<!-- output: {name} -->\n```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert schema.model_validate_json(shown).model_dump(mode="json") == json.loads(shown)


@pytest.mark.parametrize("folder", re.findall(r"^(\w+)/ {2,}", README, re.MULTILINE))
def test_every_folder_of_the_layout_exists(folder: str) -> None:
    assert (ROOT / folder).is_dir()


def test_every_link_and_script_it_names_exists() -> None:
    scripts = [span.split()[0] for span in spans() if span.startswith(("deploy/", "tests/"))]
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    missing = [name for name in [*scripts, *links] if not (ROOT / name).exists()]
    assert not missing
