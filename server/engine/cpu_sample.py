"""vLLM's sampler of drafted tokens (0.32) on a CPU: mended, and left out where nothing was drafted.

Without Triton, vLLM puts compiled functions in the place of its kernels. The one that repeats each request's
temperature for its tokens writes into a copy and leaves the original as it was allocated: as soon as one request of a
batch has a temperature, the logits of all that were drafted are divided by whatever stood in memory.

With speculation configured, every step goes through that sampler, with copies of all logits; one without drafts needs
the usual sampler only.
"""

from typing import Any

import torch
from torch import Tensor


def install() -> None:
    """Once per process."""
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    if not current_platform.is_cpu() or rejection_sampler.expand_batch_to_tokens is repeated:
        return
    rejection_sampler.expand_batch_to_tokens = repeated
    rejection_sampler.RejectionSampler.forward = _only_of_drafts(rejection_sampler.RejectionSampler.forward)


def repeated(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: float = 0, replace_to: float = 0
) -> Tensor:
    """`x` of shape (requests,), each value for each of its request's tokens: shape (tokens,), of the same type.

    `cu_num_tokens`: how many tokens the requests up to each have, shape (requests,); `replace_from` becomes
    `replace_to`.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return torch.where(x == replace_from, replace_to, x).repeat_interleave(counts, output_size=num_tokens)


def _only_of_drafts(stock: Any) -> Any:
    def forward(self: Any, metadata: Any, draft_probs: Any, logits: Tensor, sampling_metadata: Any) -> Any:
        if any(metadata.num_draft_tokens):
            return stock(self, metadata, draft_probs, logits, sampling_metadata)
        return self.sampler(logits=logits, sampling_metadata=sampling_metadata)

    return forward
