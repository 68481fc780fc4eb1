"""The embedder that comes in a package, for real."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from loramem.chunk import window_spans
from loramem.embed import BGE_QUERY, Embedder, load_embedder
from loramem.errors import SettingsError
from loramem.settings import Settings

QUESTION = "Who repaired the lighthouse lens?"
TEXTS = ["The keeper Ansel Brandt mended the lens of the lighthouse.", "Herring is salted in April.", "Glass is sand."]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(Settings(), device="cpu")


def test_vectors_are_unit_float32_of_the_stated_dim(embedder: Embedder) -> None:
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (3, embedder.dim) == (3, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert embedder.embed_query(QUESTION).shape == (384,)
    assert embedder.embed([]).shape == (0, 384)


def test_the_text_that_answers_is_nearest(embedder: Embedder) -> None:
    scores = embedder.embed(TEXTS) @ embedder.embed_query(QUESTION)
    assert scores.argmax() == 0
    assert scores[0] > scores[1] + 0.2


def test_its_name_does_not_depend_on_where_it_is_installed(embedder: Embedder) -> None:
    assert embedder.name == "all-MiniLM-L6-v2"


def test_windows_cut_by_its_tokenizer_are_read_to_their_end(embedder: Embedder) -> None:
    text = "The keeper of the northern lighthouse wrote down the weather. " * 60
    for window in window_spans(text, 0, len(text), embedder.tokenizer_path, max_tokens=embedder.max_tokens - 2):
        piece = text[window.start : window.end]
        assert embedder.count_tokens(piece) <= embedder.max_tokens - 2
        changed = embedder.embed([piece, piece.rstrip(". ") + " herring"])
        assert float(changed[0] @ changed[1]) < 1 - 1e-6


def test_threads_get_the_vectors_of_their_own_texts(embedder: Embedder) -> None:
    questions = [f"{QUESTION} {'Perhaps' * (number % 5)} {number}?" for number in range(40)]
    expected = [embedder.embed_query(question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(embedder.embed_query, questions))
    assert np.abs(np.stack(got) - np.stack(expected)).max() < 1e-5


def test_a_question_is_embedded_fast_and_leaves_torchs_threads_alone(embedder: Embedder) -> None:
    import torch

    before = torch.get_num_threads()
    taken = []
    for _ in range(20):
        started = time.thread_time()
        embedder.embed_query(QUESTION)
        taken.append(time.thread_time() - started)
    assert torch.get_num_threads() == before
    assert sorted(taken)[10] < 0.1, "seconds of one core; 0.01 were measured, the bound leaves room for a slow one"


def test_a_folder_can_be_named_and_english_bge_gets_its_instruction(embedder: Embedder, tmp_path: Path) -> None:
    folder = tmp_path / "bge-tiny-en-v1.5"
    folder.symlink_to(Path(embedder.tokenizer_path).parent)
    named = load_embedder(Settings(embedder=str(folder)), device="cpu")
    assert named.name.startswith("local@")
    assert np.allclose(named.embed_query(QUESTION), embedder.embed_query(BGE_QUERY + QUESTION), atol=1e-5)
    assert np.allclose(named.embed(TEXTS), embedder.embed(TEXTS), atol=1e-5)


def test_a_folder_is_known_by_what_it_holds_wherever_it_lies(embedder: Embedder, tmp_path: Path) -> None:
    first, moved = tmp_path / "tuned", tmp_path / "elsewhere" / "tuned"
    shutil.copytree(Path(embedder.tokenizer_path).parent, first)
    before = load_embedder(Settings(embedder=str(first)), device="cpu").name
    shutil.copytree(first, moved)
    assert load_embedder(Settings(embedder=str(moved)), device="cpu").name == before
    (weights,) = moved.glob("*.safetensors")
    with weights.open("r+b") as stream:  # in the middle, as by a training of some of the layers alone
        stream.seek(weights.stat().st_size // 2)
        stream.write(b"\0\0\0\0")
    assert load_embedder(Settings(embedder=str(moved)), device="cpu").name != before


@pytest.mark.parametrize("lacking", ["modules.json", "tokenizer.json"])
def test_a_folder_that_is_no_embedder_stops_the_start(embedder: Embedder, tmp_path: Path, lacking: str) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    if lacking == "tokenizer.json":
        for file in Path(embedder.tokenizer_path).parent.iterdir():
            if file.name != lacking:
                (folder / file.name).symlink_to(file)
    with pytest.raises(SettingsError, match="LORAMEM_EMBEDDER"):
        load_embedder(Settings(embedder=str(folder)), device="cpu")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"prompts": {"query": "query: "}},
        {"prompts": {"query": "", "document": "passage: "}, "default_prompt_name": "document"},
        {"truncate_dim": 64},
    ],
)
def test_a_question_is_embedded_as_the_library_does(
    embedder: Embedder, tmp_path: Path, extra: dict[str, object]
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "configured"
    shutil.copytree(Path(embedder.tokenizer_path).parent, folder)
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | extra))
    library = SentenceTransformer(str(folder), device="cpu")
    ours = load_embedder(Settings(embedder=str(folder)), device="cpu")
    for question in (QUESTION, "why " * 600):
        vector = library.encode_query(question)
        assert np.allclose(ours.embed_query(question), vector / np.linalg.norm(vector), atol=1e-5)
    assert ours.embed_query(QUESTION).shape == (ours.dim,) == ours.embed(TEXTS).shape[1:]
