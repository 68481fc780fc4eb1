"""Answers in OpenAI's shapes, built with the `openai` package's own types."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_choice import CompletionChoice, Logprobs

from server.api.openai_schemas import Json
from server.ask import Done, Token
from server.engine.engine import TokenLogprob


def usage_of(done: Sequence[Done]) -> CompletionUsage:
    prompt, completion = sum(item.prompt_tokens for item in done), sum(item.completion_tokens for item in done)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def chat_reply(head: Json, tokens: Sequence[Token], done: Done, *, top: int | None) -> Json:
    message = {"role": "assistant", "content": text_of(tokens)}
    reason, logprobs = _reason(done.finish_reason), chat_logprobs(tokens, top)
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": logprobs}
    reply = {**head, "object": "chat.completion", "choices": [choice], "usage": usage_of([done])}
    return ChatCompletion.model_validate(reply).model_dump(mode="json")


def chat_chunk(head: Json, delta: Json, finish_reason: str | None = None, logprobs: Json | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
    reply = {**head, "object": "chat.completion.chunk", "choices": [choice]}
    return ChatCompletionChunk.model_validate(reply).model_dump_json()


def chat_usage_chunk(head: Json, done: Done) -> str:
    reply = {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage_of([done])}
    return ChatCompletionChunk.model_validate(reply).model_dump_json()


def chat_logprobs(tokens: Sequence[Token], top: int | None) -> Json | None:
    """`top` None: not asked for."""
    if top is None:
        return None
    found = [_chat_logprob(item, top) for token in tokens for item in token.logprobs]
    return {"content": [item.model_dump() for item in found], "refusal": None}


def _chat_logprob(item: TokenLogprob, top: int) -> ChatCompletionTokenLogprob:
    alternatives = [
        TopLogprob(token=text, logprob=logprob, bytes=list(text.encode())) for text, logprob in item.top[:top]
    ]
    return ChatCompletionTokenLogprob(
        token=item.token, logprob=item.logprob, bytes=list(item.token.encode()), top_logprobs=alternatives
    )


def completion_reply(head: Json, answers: Sequence[tuple[Sequence[Token], Done]], *, logprobs: bool) -> Json:
    choices = [
        CompletionChoice(
            index=index,
            text=text_of(tokens),
            finish_reason=_reason(done.finish_reason),
            logprobs=completion_logprobs(tokens) if logprobs else None,
        )
        for index, (tokens, done) in enumerate(answers)
    ]
    reply = {**head, "object": "text_completion", "choices": choices, "usage": usage_of([d for _, d in answers])}
    return Completion.model_validate(reply).model_dump(mode="json")


def completion_chunk(head: Json, text: str, finish_reason: str | None, logprobs: Logprobs | None) -> Json:
    """OpenAI's type wants a finish reason in each chunk, its service sends null: so this one is built by hand."""
    dumped = logprobs.model_dump() if logprobs is not None else None
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": dumped}
    return {**head, "object": "text_completion", "choices": [choice]}


def completion_usage_chunk(head: Json, done: Done) -> Json:
    usage = usage_of([done]).model_dump(exclude_none=True)
    return {**head, "object": "text_completion", "choices": [], "usage": usage}


def completion_logprobs(tokens: Sequence[Token], start: int = 0) -> Logprobs:
    """`start`: how many characters of the answer came before, in other chunks of its stream."""
    items = [item for token in tokens for item in token.logprobs]
    lengths = [len(item.token) for item in items]
    return Logprobs(
        tokens=[item.token for item in items],
        token_logprobs=[item.logprob for item in items],
        top_logprobs=[dict(item.top) for item in items],
        text_offset=list(accumulate(lengths[:-1], initial=start)) if items else [],
    )


def text_of(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


def _reason(reason: str) -> Literal["stop", "length"]:
    return "length" if reason == "length" else "stop"
