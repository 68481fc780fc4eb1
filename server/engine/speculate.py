"""Speculative decoding from what a memory was taught: its answers and its chunk are the draft of what it will say.

An adapter says much of what it learnt word for word, and an answer from retrieved text quotes its prompt. So the next
tokens are looked up, where a smaller model would guess them: what followed where the end of the answer so far stands in
the drafts is proposed, and the model checks all of it in the step that it would have spent on one token. Only what it
would have said itself is accepted. On a CPU, whose step waits for the weights to come out of memory, that makes up to
three tokens a step (decision 0023).

vLLM makes a `Drafter` in its worker (speculative method `custom_class`); the drafts come with the question.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]

BETWEEN = -1
"""Stands before, between and after the texts of a draft, and before an answer, so that beginnings match beginnings."""
LONGEST_MATCH = 12
"""Tokens of the answer that are looked for."""
REQUESTS = 8
"""The more run at once, the longer a CPU computes and the less it waits for the weights, so the surer a proposal has to
be: for each so many, one more token of the answer must match."""
ARGUMENT = "loramem_drafts"
"""Of `SamplingParams.extra_args`: what `packed` gives."""


def packed(texts: Iterable[Sequence[int]]) -> bytes:
    """Texts in tokens, as they are sent with a question; concatenate the bytes of several."""
    return np.array([token for text in texts for token in (*text, BETWEEN)], dtype=np.int32).tobytes()


def unpacked(drafts: bytes, prompt: Tokens) -> Tokens:
    """All that is looked through: `drafts` first, then the prompt, int32 of shape (n,)."""
    between = np.array([BETWEEN], dtype=np.int32)
    return np.concatenate((between, np.frombuffer(drafts, dtype=np.int32), prompt, between))


def continuation(looked_through: Tokens, answer: Tokens, most: int, busy: int = 0) -> list[int]:
    """What follows where the longest end of `answer` first stands: a token more than that end has, less `busy`, and up
    to `most`.

    The longer the match, the more of what follows is right; after one token alone it is as often wrong.
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
    follows: list[int] = looked_through[start : start + max(0, min(matched + 1 - busy, most))].tolist()
    return follows[: follows.index(BETWEEN)] if BETWEEN in follows else follows


class Drafter:
    """What vLLM calls after each step, in its worker."""

    def __init__(self, vllm_config: Any) -> None:
        self._most = vllm_config.speculative_config.num_speculative_tokens
        self._window = vllm_config.model_config.max_model_len
        self._runner: Any = None

    def load_model(self, model: Any) -> None:
        """There is none."""

    def bind(self, runner: Any) -> None:
        """Drafts are read from this runner's requests; before that nothing is proposed."""
        self._runner = runner

    def propose(
        self, sampled: list[list[int]], lengths: NDArray[np.int32], tokens: Tokens, slot_mappings: Any = None
    ) -> list[list[int]]:
        """Tokens that may follow, by request of the batch.

        `sampled`: what this step added, nothing where a request was not sampled; `lengths`: of prompt and answer, shape
        (requests,); `tokens`: both, shape (requests, window).
        """
        if self._runner is None:
            return [[] for _ in sampled]
        busy = len(sampled) // REQUESTS
        return [
            self._proposed(row, int(lengths[row]), tokens[row], busy) if added else []
            for row, added in enumerate(sampled)
        ]

    def _proposed(self, row: int, length: int, tokens: Tokens, busy: int) -> list[int]:
        batch = self._runner.input_batch
        sampling = self._runner.requests[batch.req_ids[row]].sampling_params
        drafts = (sampling.extra_args or {}).get(ARGUMENT)
        if drafts is None:
            return []
        begins = int(batch.num_prompt_tokens[row])
        most = min(self._most, self._window - length - 1)
        return continuation(unpacked(drafts, tokens[:begins]), tokens[begins:length], most, busy)
