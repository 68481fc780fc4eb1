"""What the engine says of itself before it runs."""

from pathlib import Path

from loramem.base_model import BaseModel
from loramem.settings import Settings
from server.engine.engine import Engine


def test_slots_are_as_many_as_the_settings_say() -> None:
    assert Engine(Settings(max_loras=3), BaseModel(Path("nowhere"), "noting", "f" * 64)).slots == 3
