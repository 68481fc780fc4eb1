"""A closed-book exam on questions that stayed out of training, with the adapter and without it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from loramem import prompts
from loramem.records import ExamResult
from trainer_worker.adapter import TrainedAdapter
from trainer_worker.examples import Example

if TYPE_CHECKING:
    from trainer_worker.train import Trainer

WEAK_BELOW = 0.3
"""An adapter that recalls a smaller share than this is reported as weak."""
MAX_QUESTIONS = 16
MAX_NEW_TOKENS = 48


def examine(
    trainer: "Trainer",
    adapter: TrainedAdapter,
    held_out: Sequence[Example],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExamResult:
    """Ask at most `MAX_QUESTIONS`; an answer is right when it holds the expected one, case folded."""
    asked = list(held_out)[:MAX_QUESTIONS]
    if not asked:
        return ExamResult(questions=0, recall=0.0, base_recall=0.0, loss=0.0, weak=False)
    questions = [example.question for example in asked]
    base_recall = recall(asked, answer_closed_book(trainer, questions))
    on_progress(1, 2)
    with trainer.adapted(adapter):
        with_adapter = recall(asked, answer_closed_book(trainer, questions))
        loss = trainer.mean_loss(asked)
    on_progress(2, 2)
    return ExamResult(
        questions=len(asked), recall=with_adapter, base_recall=base_recall, loss=loss, weak=with_adapter < WEAK_BELOW
    )


def recall(examples: Sequence[Example], answers: Sequence[str]) -> float:
    """Share, 0 to 1, of answers that hold what was expected."""
    held = [_expected(example) in answer.casefold() for example, answer in zip(examples, answers, strict=True)]
    return sum(held) / max(1, len(held))


def _expected(example: Example) -> str:
    return (example.span or example.answer).strip().rstrip(".").casefold()


def answer_closed_book(
    trainer: "Trainer", questions: Sequence[str], *, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[str]:
    """Greedy answers of the model as it is now, all questions in one batch."""
    return answer(trainer, [prompts.closed_book(question) for question in questions], max_new_tokens=max_new_tokens)


def answer(trainer: "Trainer", conversations: Sequence[list[prompts.Message]], *, max_new_tokens: int) -> list[str]:
    import torch

    tokenizer: Any = trainer.tokenizer
    texts = [tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m in conversations]
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    inputs = inputs.to(trainer.device)
    with torch.no_grad():
        output = trainer.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=trainer.pad,
        )
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
