"""What tests of more than one package share."""

import pytest

from loramem.base_model import BaseModel, resolve_base_model
from loramem.settings import Settings


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The embedded base model, unpacked once a run: it takes about 20 s."""
    return resolve_base_model(Settings(home=tmp_path_factory.mktemp("base")))
