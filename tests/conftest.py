"""What tests of more than one package share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from loramem.base_model import BaseModel, resolve_base_model
from loramem.embed import load_embedder
from loramem.settings import Settings

for _name in [name for name in os.environ if name.startswith("LORAMEM_")]:
    if not _name.startswith(("LORAMEM_TEST_", "LORAMEM_BENCH_")):
        del os.environ[_name]  # no test may write into the database that somebody's shell names

hypothesis_settings.register_profile("all", deadline=None)  # a slow machine is no mistake
hypothesis_settings.load_profile("all")


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The embedded base model, unpacked once a run: it takes about 20 s."""
    return resolve_base_model(Settings(home=tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="session")
def embedder_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the embedder's graph, exported once a run, and nothing else."""
    folder = tmp_path_factory.mktemp("embedder")
    load_embedder(Settings(), device="cpu").hasten(folder)
    return folder


@pytest.fixture(scope="session")
def fill_cache(
    base_model: BaseModel, embedder_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], None]:
    """Puts into a server's cache what it would make at its first start, which takes half a minute, and a link to where
    all servers of a run keep what their base says to the anchors, which takes as long again."""
    anchors = tmp_path_factory.mktemp("anchors")

    def fill(cache: Path) -> None:
        cache.mkdir(parents=True)
        for made in (base_model.path, *embedder_cache.glob("embedder-*")):
            (cache / made.name).symlink_to(made)
        (cache / f"anchors-{base_model.fingerprint[:16]}").symlink_to(anchors)

    return fill


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests of small tensors: more threads only wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
