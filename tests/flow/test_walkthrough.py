"""The whole flow as a new user would run it: the shipped sample, the text alone, every mode."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.flow.live import Live

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[2] / "deploy" / "walkthrough.sh"


def test_the_walkthrough_succeeds_against_a_real_server(live: Live) -> None:
    environment = {**os.environ, "LORAMEM_WALKTHROUGH_NAMESPACE": "walkthrough"}
    done = subprocess.run(
        [str(SCRIPT), "--cleanup", live.url], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
