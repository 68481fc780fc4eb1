"""What tests of more than one package share."""

import os
from collections.abc import Iterator

import pytest

from loramem.base_model import BaseModel, resolve_base_model
from loramem.settings import Settings

for _name in [name for name in os.environ if name.startswith("LORAMEM_")]:
    if not _name.startswith(("LORAMEM_TEST_", "LORAMEM_BENCH_")):
        del os.environ[_name]  # no test may write into the database that somebody's shell names


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The embedded base model, unpacked once a run: it takes about 20 s."""
    return resolve_base_model(Settings(home=tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests of small tensors: more threads only wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
