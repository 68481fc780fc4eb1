"""The whole flow as a new user would run it: the shipped sample, the text alone, every mode."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.backends import postgres_binaries
from tests.flow.live import Live
from tests.rules import ROOT

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(900)]

QUESTIONS = 5
"""Of the ten that come with the sample; enough to tell weights that know from such that do not."""


def walk(url: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script on a copy of the sample, and delete its document."""
    sample = Path(shutil.copy(ROOT / "deploy" / "sample.txt", folder))
    questions = json.loads((ROOT / "deploy" / "sample.json").read_text())["questions"]
    sample.with_suffix(".json").write_text(json.dumps(questions[:QUESTIONS]))
    command = [str(ROOT / "deploy" / "walkthrough.sh"), "--cleanup", url, str(sample)]
    given = {**os.environ, **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=800, check=False)


@pytest.mark.skipif(postgres_binaries() is not None, reason="with PostgreSQL, the stack is walked through")
def test_the_walkthrough_succeeds_against_a_real_server(live: Live, tmp_path: Path) -> None:
    done = walk(live.url, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
