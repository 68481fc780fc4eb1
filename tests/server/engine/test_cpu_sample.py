"""vLLM's sampler of drafted tokens on a CPU, as the plugin leaves it."""

import sys
import warnings
from dataclasses import replace
from itertools import accumulate
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.platforms import current_platform

from server.engine import cpu_sample, plugin
from server.engine.cpu_sample import _takes_the_likeliest, likeliest, repeated

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the sampler of a CPU")
VOCABULARY = 50
DRAFTS = [[3, 4, 5], [], [7]]
"""Of three requests: greedy, with a temperature, greedy."""


class OwnModules:
    """Of `sys.modules`, those of vLLM."""

    def __getitem__(self, name: str) -> ModuleType:
        return sys.modules[name]

    def values(self) -> list[ModuleType]:
        return [module for name, module in sys.modules.items() if name.startswith("vllm.")]


@pytest.fixture(autouse=True, scope="module")
def _as_in_the_worker() -> None:
    """It looks at every attribute of every module; those of other tests do not all bear that."""
    from vllm.triton_utils import dispatcher

    plugin.register()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(dispatcher, "sys", SimpleNamespace(modules=OwnModules()))
        current_platform.register_triton_kernel_overrides()


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.7, 1.0]), st.integers(0, 4)), min_size=1, max_size=6))
def test_each_value_stands_for_each_token_of_its_request(requests: list[tuple[float, int]]) -> None:
    values, counts = torch.tensor([one for one, _ in requests]), torch.tensor([count for _, count in requests])
    found = repeated(values, counts.cumsum(0), int(counts.sum()), replace_from=0, replace_to=1)
    assert found.dtype == values.dtype
    assert found.tolist() == pytest.approx([one or 1.0 for one, count in requests for _ in range(count)])


def test_whole_numbers_stay_whole() -> None:
    found = repeated(torch.tensor([5, 0], dtype=torch.int32), torch.tensor([2, 3], dtype=torch.int32), 3, 0, VOCABULARY)
    assert (found.dtype, found.tolist()) == (torch.int32, [5, 5, VOCABULARY])


def test_what_is_greedy_stays_so_beside_what_is_sampled() -> None:
    """What vLLM has in its place leaves memory as it was allocated."""
    logits = logits_for([3, 4, 9, 9, 1, 7, 8])
    for _ in range(20):
        sampled = sample(logits, [0.0, 0.9, 0.0]).sampled_token_ids.tolist()
        assert sampled[0] == [3, 4, 9, -1]
        assert sampled[2][:2] == [7, 8]


def test_log_probabilities_are_of_the_tokens_that_were_kept() -> None:
    logits = logits_for([3, 4, 9, 9, 1, 7, 8])
    found = sample(logits, [0.0, 0.0, 0.0], logprobs=0)
    assert [one for [one] in found.logprobs_tensors.logprob_token_ids.tolist() if one] == [3, 4, 9, 1, 7, 8]


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=5).filter(any), st.data())
def test_the_likeliest_tokens_are_what_the_stock_sampler_keeps(drafts: list[list[int]], data: Any) -> None:
    rows = sum(len(one) + 1 for one in drafts)
    logits = logits_for(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)))
    stock = sample(logits, [0.0] * len(drafts), drafts=drafts, logprobs=0)  # with log-probabilities it is vLLM's
    assert stock.logprobs_tensors is not None
    assert torch.equal(likeliest(drafts_of(drafts), logits), stock.sampled_token_ids)


@pytest.fixture
def _no_stock_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **named: Any) -> None:
        raise AssertionError("the sampler of drafts was asked")

    from vllm.v1.sample import rejection_sampler

    monkeypatch.setattr(rejection_sampler, "rejection_sample", fails)


@pytest.mark.usefixtures("_no_stock_sampler")
def test_greedy_drafts_do_not_go_through_the_stock_sampler() -> None:
    found = sample(logits_for([3, 4, 9, 9, 1, 7, 8]), [0.0, 0.0, 0.0])
    assert found.sampled_token_ids.tolist() == [[3, 4, 9, -1], [1, -1, -1, -1], [7, 8, -1, -1]]


@pytest.mark.parametrize(
    "asked",
    [
        {"no_penalties": False},
        {"max_num_logprobs": 0},
        {"bad_words_token_ids": {0: [[1]]}},
        {"allowed_token_ids_mask": torch.zeros(1, VOCABULARY, dtype=torch.bool)},
        {"logprob_token_ids": {0: [1]}},
        {"all_greedy": False},
        {"thinking_budget_state_holder": SimpleNamespace(has_tracked_requests=lambda: True)},
        {"logitsprocs": SimpleNamespace(non_argmax_invariant=[object()])},
    ],
)
def test_whatever_else_is_asked_for_is_left_to_the_stock_sampler(asked: dict[str, Any]) -> None:
    assert _takes_the_likeliest(metadata_of([0.0]))
    assert not _takes_the_likeliest(replace(metadata_of([0.0]), **asked))


def test_a_least_length_is_left_to_the_stock_sampler() -> None:
    from vllm.v1.sample.logits_processor import LogitsProcessors, MinTokensLogitsProcessor

    processor = MinTokensLogitsProcessor.__new__(MinTokensLogitsProcessor)
    processor.min_toks = {}
    sampling = replace(metadata_of([0.0]), logitsprocs=LogitsProcessors([processor]))
    assert _takes_the_likeliest(sampling)
    processor.min_toks = {0: (5, [], {1})}
    assert not _takes_the_likeliest(sampling)


@pytest.mark.usefixtures("_no_stock_sampler")
def test_without_drafts_the_usual_sampler_answers() -> None:
    found = sample(logits_for([6, 2]), [0.0, 0.0], drafts=[[], []], logprobs=0)
    assert found.sampled_token_ids.tolist() == [[6], [2]]
    assert found.logprobs_tensors.logprob_token_ids.tolist() == [[6], [2]]
    with pytest.raises(AssertionError, match="was asked"):
        sample(logits_for([6, 2, 3]), [0.0, 0.0], drafts=[[6], []], logprobs=0)


def test_it_is_installed_once() -> None:
    from vllm.v1.sample import rejection_sampler

    forward = rejection_sampler.RejectionSampler.forward
    cpu_sample.install()
    assert rejection_sampler.expand_batch_to_tokens is repeated
    assert rejection_sampler.RejectionSampler.forward is forward


def logits_for(likeliest: list[int]) -> torch.Tensor:
    """A row for each token to check and one more for each request."""
    logits = torch.zeros(len(likeliest), VOCABULARY)
    logits[torch.arange(len(likeliest)), torch.tensor(likeliest)] = 20.0
    return logits


def sample(
    logits: torch.Tensor, temperatures: list[float], drafts: list[list[int]] = DRAFTS, logprobs: int | None = None
) -> Any:
    from vllm.v1.sample.rejection_sampler import RejectionSampler
    from vllm.v1.sample.sampler import Sampler

    return RejectionSampler(Sampler()).forward(drafts_of(drafts), None, logits, metadata_of(temperatures, logprobs))


def drafts_of(drafts: list[list[int]]) -> Any:
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    metadata = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu"))
    ends = list(accumulate(len(one) + 1 for one in drafts))
    metadata.bonus_logits_indices = torch.tensor([end - 1 for end in ends])
    metadata.target_logits_indices = torch.tensor([row for row in range(ends[-1]) if row + 1 not in ends]).long()
    return metadata


def metadata_of(temperatures: list[float], logprobs: int | None = None) -> Any:
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    greedy = all(one == 0 for one in temperatures)
    return SamplingMetadata(
        temperature=None if greedy else torch.tensor(temperatures),
        all_greedy=greedy,
        all_random=False,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=logprobs,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=torch.zeros(0),
        presence_penalties=torch.zeros(0),
        repetition_penalties=torch.zeros(0),
        output_token_ids=[[] for _ in temperatures],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
