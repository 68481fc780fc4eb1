"""The tiny model with an adapter that has learnt its lessons, for benchmarks that answer by downloaded adapters."""

from pathlib import Path

from benchmarks.adapters import Archive
from tests.benchmarks.fake_server import archive
from tests.trainer_worker.tiny import LESSONS, save_tiny_model
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.loop import Hyperparameters
from trainer_worker.train import Trainer


def train_tiny(folder: Path) -> tuple[Trainer, TrainedAdapter]:
    """The model is written into the folder."""
    hyperparameters = Hyperparameters(learning_rate=1e-2, epochs=1, min_steps=30, anchors=0.0)
    trainer = Trainer(str(save_tiny_model(folder)), seed=0, hyperparameters=hyperparameters)
    return trainer, trainer.train(LESSONS, [], rank=8, max_seconds=3600, on_step=lambda *_: None)


def tar_of(adapter: TrainedAdapter, folder: Path) -> bytes:
    adapter.save(folder)
    return archive("ad1", {file.name: file.read_bytes() for file in folder.iterdir()})


def learnt_archive(folder: Path) -> tuple[Trainer, Archive]:
    """Both are written into the folder."""
    trainer, adapter = train_tiny(folder / "tiny")
    return trainer, Archive.of(tar_of(adapter, folder / "ad1"))
