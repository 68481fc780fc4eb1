"""vLLM's sampler of drafted tokens (0.32) on a CPU: mended, and left out where nothing was drafted.

Without Triton, vLLM puts compiled functions in the place of its kernels. The one that repeats each request's
temperature for its tokens writes into a copy and leaves the original as it was allocated: as soon as one request of a
batch has a temperature, the logits of all that were drafted are divided by whatever stood in memory.

With speculation configured, every step goes through that sampler, which copies all logits several times: 6 ms for
sixteen requests. One without drafts needs the usual sampler only, and where all are greedy, with nothing else asked
for (such as log-probabilities, by which adapters are selected), the likeliest tokens are all that it takes.
"""

from typing import Any

import torch
from torch import Tensor

NOTHING = -1
"""vLLM's `PLACEHOLDER_TOKEN_ID`."""


def install() -> None:
    """Once per process."""
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    if not current_platform.is_cpu() or rejection_sampler.expand_batch_to_tokens is repeated:
        return
    rejection_sampler.expand_batch_to_tokens = repeated
    rejection_sampler.RejectionSampler.forward = _shortened(rejection_sampler.RejectionSampler.forward)


def repeated(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: float = 0, replace_to: float = 0
) -> Tensor:
    """`x` of shape (requests,), each value for each of its request's tokens: shape (tokens,), of the same type.

    `cu_num_tokens`: how many tokens the requests up to each have, shape (requests,); `replace_from` becomes
    `replace_to`.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return torch.where(x == replace_from, replace_to, x).repeat_interleave(counts, output_size=num_tokens)


def _shortened(stock: Any) -> Any:
    def forward(self: Any, metadata: Any, draft_probs: Any, logits: Tensor, sampling_metadata: Any) -> Any:
        if not any(metadata.num_draft_tokens):
            return self.sampler(logits=logits, sampling_metadata=sampling_metadata, predict_bonus_token=True)
        if _takes_the_likeliest(sampling_metadata):
            from vllm.v1.outputs import SamplerOutput

            return SamplerOutput(sampled_token_ids=likeliest(metadata, logits), logprobs_tensors=None)
        return stock(self, metadata, draft_probs, logits, sampling_metadata)

    return forward


def likeliest(metadata: Any, logits: Tensor) -> Tensor:
    """What vLLM's sampler keeps of greedy drafts, int32 of shape (requests, longest draft + 1): each draft as far as it
    is likeliest, the likeliest token after that, then -1.

    `logits` of shape (tokens, vocabulary); `metadata` is vLLM's `SpecDecodeMetadata`.
    """
    best = logits.float().argmax(dim=-1)
    checked, after = best[metadata.target_logits_indices].tolist(), best[metadata.bonus_logits_indices].tolist()
    drafted = metadata.draft_token_ids.tolist()
    kept = torch.full((len(after), metadata.max_spec_len + 1), NOTHING, dtype=torch.int32)
    begins = 0
    for row, count in enumerate(metadata.num_draft_tokens):
        said = [*checked[begins : begins + count], after[row]]
        right = 0
        while right < count and said[right] == drafted[begins + right]:
            right += 1
        kept[row, : right + 1] = torch.tensor(said[: right + 1], dtype=torch.int32)
        begins += count
    return kept


def _takes_the_likeliest(sampling: Any) -> bool:
    """Whether nothing is asked of any request but its likeliest token."""
    budget = sampling.thinking_budget_state_holder
    return (
        sampling.all_greedy
        and sampling.no_penalties
        and sampling.max_num_logprobs is None
        and not sampling.logprob_token_ids
        and sampling.allowed_token_ids_mask is None
        and not sampling.bad_words_token_ids
        and (budget is None or not budget.has_tracked_requests())
        and not any(getattr(one, "min_toks", True) for one in sampling.logitsprocs.non_argmax_invariant)
    )
