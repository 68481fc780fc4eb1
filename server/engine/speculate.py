"""Speculative decoding from what a memory was taught: its answers and its chunk are the draft of what it will say.

An adapter says much of what it learnt word for word, and an answer from retrieved text quotes its prompt. So the next
tokens are looked up, where a smaller model would guess them: what followed where the end of the answer so far stands in
the drafts is proposed, and the model checks all of it in the step that it would have spent on one token. Only what it
would have said itself is accepted. On a CPU, whose step waits for the weights to come out of memory, that is two tokens
or three in the time of one (decision 0023).

vLLM makes a `Drafter` in its worker (speculative method `custom_class`); the drafts come with the question.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loramem.settings import Settings

Tokens = NDArray[np.int32]

METHOD = "custom_class"
"""vLLM's name for a drafter that it is told."""
BETWEEN = -1
"""Stands before, between and after the texts of a draft, and before an answer, so that beginnings match beginnings."""
LONGEST_MATCH = 12
"""Tokens of the answer that are looked for."""
BESIDE = 4
"""The more requests run, the longer a CPU computes and the less it waits for the weights, and the surer a proposal has
to be: for each request beside its own, up to so many, it is a token shorter."""
ARGUMENT = "loramem_drafts"
"""Of `SamplingParams.extra_args`: what `packed` gives."""


def configuration(settings: Settings, on_gpu: bool) -> dict[str, Any] | None:
    """vLLM's `speculative_config`; None: nothing is drafted.

    On a CPU with a schedule, though it is always the same: without one, vLLM fills requests up to the size that a GPU's
    graphs have, with drafts that do not exist.
    """
    tokens = settings.speculative_tokens_on("gpu" if on_gpu else "cpu")
    if not tokens:
        return None
    found = {
        "method": METHOD,
        "model": _name(),
        "num_speculative_tokens": tokens,
    }
    if on_gpu:
        return found
    return found | {"num_speculative_tokens_per_batch_size": [(1, settings.max_concurrent_requests, tokens)]}


def packed(texts: Iterable[Sequence[int]]) -> bytes:
    """Texts in tokens, as they are sent with a question; concatenate the bytes of several."""
    return np.array([token for text in texts for token in (*text, BETWEEN)], dtype=np.int32).tobytes()


def unpacked(drafts: bytes, prompt: Tokens) -> Tokens:
    """All that is looked through: `drafts` first, then the prompt, int32 of shape (n,)."""
    between = np.array([BETWEEN], dtype=np.int32)
    return np.concatenate((between, np.frombuffer(drafts, dtype=np.int32), prompt, between))


def continuation(looked_through: Tokens, answer: Tokens, *, most: int, fewer: int = 0) -> list[int]:
    """The tokens after the first place where the longest suffix of `answer` stands in `looked_through`.

    As many as the suffix has, plus one, less `fewer`, and at most `most`: the longer the match, the more of what
    follows is right; after a single token it is as often wrong.
    """
    if not len(answer):
        return []
    tail = np.concatenate(([BETWEEN], answer))[-LONGEST_MATCH:]
    ends = np.flatnonzero(looked_through[:-1] == tail[-1])
    if not len(ends):
        return []
    matched = 1
    while matched < len(tail):
        longer = ends[looked_through[ends - matched] == tail[-1 - matched]]
        if not len(longer):
            break
        ends, matched = longer, matched + 1
    start = int(ends[0]) + 1
    follows: list[int] = looked_through[start : start + max(0, min(matched + 1 - fewer, most))].tolist()
    return follows[: follows.index(BETWEEN)] if BETWEEN in follows else follows


def hide_drafts(parameters: Any) -> None:
    """vLLM writes the parameters of what runs into its log when it dies, and drafts are somebody's text; once."""
    stock = parameters.__repr__
    if hasattr(stock, "_loramem"):
        return

    def shown(self: Any) -> str:
        text: str = stock(self)
        drafts = _drafts_of(self)
        return text if drafts is None else text.replace(repr(drafts), f"<{len(drafts)} bytes>")

    shown._loramem = True  # type: ignore[attr-defined]
    parameters.__repr__ = shown


def fetch_where_proposed(core: Any) -> None:
    """vLLM sends for its worker's proposals after each step, which waits for the answer, also when no request that runs
    has drafts, as with a temperature; once."""
    stock = core.post_step
    if hasattr(stock, "_loramem"):
        return

    def post_step(self: Any, model_executed: bool) -> None:
        running = self.scheduler.running
        if not _is_ours(self.vllm_config.speculative_config) or any(_is_drafted(request) for request in running):
            stock(self, model_executed)

    post_step._loramem = True  # type: ignore[attr-defined]
    core.post_step = post_step


def _is_ours(config: Any) -> bool:
    """Somebody else's drafter proposes without our drafts."""
    return config is not None and (config.method, config.model) == (METHOD, _name())


def _name() -> str:
    return f"{Drafter.__module__}.{Drafter.__qualname__}"


def _is_drafted(request: Any) -> bool:
    return _drafts_of(request.sampling_params) is not None


def _drafts_of(sampling: Any) -> bytes | None:
    drafts: bytes | None = (sampling.extra_args or {}).get(ARGUMENT)
    return drafts


class Drafter:
    """What vLLM calls after each step, in its worker."""

    def __init__(self, vllm_config: Any) -> None:
        self._most = vllm_config.speculative_config.num_speculative_tokens
        self._window = vllm_config.model_config.max_model_len
        self._runner: Any = None

    def load_model(self, model: Any) -> None:
        """There is none."""

    def bind(self, runner: Any) -> None:
        """Drafts are read from this runner's requests; before that nothing is proposed.

        vLLM keeps the last tokens of the window for a draft model: when any request comes near, it has zeros proposed
        to all. Here no proposal goes beyond the window.
        """
        self._runner = runner
        runner.effective_drafter_max_model_len = runner.max_model_len + runner.num_spec_tokens

    def propose(
        self, sampled: list[list[int]], lengths: NDArray[np.int32], tokens: Tokens, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Tokens that may follow, by request of the batch.

        `sampled`: what this step added, nothing where a request was not sampled; `lengths`: of prompt and answer, shape
        (requests,); `tokens`: both, shape (requests, window).
        """
        if self._runner is None:
            return [[] for _ in sampled]
        beside = min(len(sampled) - 1, BESIDE)
        return [
            self._proposed(row, int(lengths[row]), tokens[row], beside) if added else []
            for row, added in enumerate(sampled)
        ]

    def _proposed(self, row: int, length: int, tokens: Tokens, beside: int) -> list[int]:
        batch = self._runner.input_batch
        sampling = self._runner.requests[batch.req_ids[row]].sampling_params
        drafts = _drafts_of(sampling)
        if drafts is None:
            return []
        begins = int(batch.num_prompt_tokens[row])
        room = min(self._window, begins + (sampling.max_tokens or self._window)) - length - 1
        return continuation(
            unpacked(drafts, tokens[:begins]), tokens[begins:length], most=min(self._most, room), fewer=beside
        )
