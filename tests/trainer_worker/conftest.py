"""What tests that train a tiny model share."""

from pathlib import Path

import pytest

from tests.trainer_worker.tiny import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def short_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of 32 tokens, so that the few lessons fill more than one."""
    from trainer_worker import packing

    monkeypatch.setattr(packing, "LANE_TOKENS", 32)
