"""The whole flow as a new user would run it: a text alone, the default training, every mode."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.backends import postgres_binaries
from tests.flow.conftest import HARBOUR
from tests.flow.live import Live
from tests.rules import ROOT

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(3600)]

QUESTIONS = {
    "Who dug the harbour of Quillmere?": "Wrenfield",
    "When was the harbour of Quillmere dug?": "1874",
    "How high is the lighthouse of Quillmere?": "31",
    "In what do ships pay the harbour dues?": "herring",
}


def walk(url: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script on a text so short that slow machines learn it too, and delete its document."""
    text = folder / "quillmere.txt"
    text.write_text(HARBOUR)
    asked = [{"question": question, "expected": expected} for question, expected in QUESTIONS.items()]
    text.with_suffix(".json").write_text(json.dumps(asked))
    command = [str(ROOT / "deploy" / "walkthrough.sh"), "--cleanup", url, str(text)]
    given = {**os.environ, **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=1800, check=False)


@pytest.mark.skipif(postgres_binaries() is not None, reason="with PostgreSQL, the stack is walked through")
def test_the_walkthrough_succeeds_against_a_real_server(live: Live, tmp_path: Path) -> None:
    done = walk(live.url, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
