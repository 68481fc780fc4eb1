"""/v1: OpenAI's chat completions, completions and models, so that existing clients can ask a memory.

`model` is the base model's name (no memory), `<namespace>` (mode lora) or `<namespace>:<mode>`.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import select

from loramem.errors import InvalidValue, NotFound
from loramem.records import AskedMode
from loramem.tables import Document, Namespace
from server.answer import whole
from server.api import openai_replies as replies
from server.api.common import TheGateway
from server.api.errors import known, openai_error
from server.api.fields import Text
from server.api.openai_schemas import ChatIn, CompletionIn, ErrorOut, GenerationFields, Json, ModelList, ModelOut
from server.api.queries import answered, observed
from server.ask import Ask, Done, Event, Token
from server.engine.engine import Sampling
from server.gateway import Gateway
from server.stream import sse_response, streamed, while_connected
from server.tasks import in_thread_of, together

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

MODES: tuple[AskedMode, ...] = ("lora", "rag", "icl", "hybrid", "auto", "base")
STREAMED: Json = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


def _errors(*codes: int) -> dict[int | str, Json]:
    return {code: {"model": ErrorOut} for code in (401, 403, 503, *codes)}


ERRORS = _errors(400, 404, 409, 413, 415, 422, 500)


@router.get("/models/", include_in_schema=False)
@router.get("/models", responses=_errors())
def list_models(gateway: TheGateway) -> ModelList:
    """The base model, each namespace that has a document, and each of these in each mode."""
    return ModelList(data=[ModelOut(id=name, created=0) for name in _models(gateway)])


@router.get("/models/{model:path}", responses=_errors(404, 422))
def get_model(model: Text, gateway: TheGateway) -> ModelOut:
    """One of those listed; its name may hold slashes."""
    if model not in _models(gateway):
        raise NotFound("model", model)
    return ModelOut(id=model, created=0)


@router.post("/chat/completions", response_model=None, responses={**ERRORS, 200: STREAMED})
async def chat(wanted: ChatIn, request: Request, gateway: TheGateway) -> JSONResponse | StreamingResponse:
    """A chat turn. With a memory as model, the last message is the question that is routed."""
    namespace, mode = await in_thread_of(gateway.answerer.prompting, _resolve, gateway, wanted.model)
    top = wanted.top_logprobs if wanted.logprobs else None
    ask = _chat_ask(wanted, namespace, mode, _sampling(gateway, wanted, mode, top))
    events = observed(gateway, ask)
    head = _head("chatcmpl", wanted.model)
    if wanted.stream:
        await while_connected(request, anext(events))  # errors before the first byte keep their status
        chunks = _chat_stream(head, events, top=top, usage=wanted.include_usage)
        return sse_response(streamed(chunks, events, _failure))
    _, tokens, done = await while_connected(request, whole(events))
    return JSONResponse(replies.chat_reply(head, tokens, done, top=top))


@router.post("/completions", response_model=None, responses={**ERRORS, 200: STREAMED})
async def completions(wanted: CompletionIn, request: Request, gateway: TheGateway) -> JSONResponse | StreamingResponse:
    """Continue a text with the base model, or put it as a question to a memory."""
    namespace, mode = await in_thread_of(gateway.answerer.prompting, _resolve, gateway, wanted.model)
    sampling = _sampling(gateway, wanted, mode, wanted.logprobs)
    answers = [_completion_events(gateway, prompt, namespace, mode, sampling) for prompt in wanted.prompts]
    head = _head("cmpl", wanted.model)
    if wanted.stream:
        if len(answers) > 1:
            raise InvalidValue("stream takes one prompt", key="prompt", value=f"{len(answers)} prompts", allowed="one")
        (events,) = answers
        await while_connected(request, anext(events))
        chunks = _completion_stream(head, events, logprobs=wanted.logprobs is not None, usage=wanted.include_usage)
        return sse_response(streamed(chunks, events, _failure))
    found = await while_connected(request, together(map(whole, answers)))
    pairs = [(tokens, done) for _, tokens, done in found]
    return JSONResponse(replies.completion_reply(head, pairs, logprobs=wanted.logprobs is not None))


def _models(gateway: Gateway) -> list[str]:
    with gateway.database.read() as session:
        namespaces = list(session.scalars(select(Document.namespace).distinct().order_by(Document.namespace)))
    return [gateway.base.name, *(f"{name}{mode}" for name in namespaces for mode in ("", *(f":{m}" for m in MODES)))]


def _resolve(gateway: Gateway, model: str) -> tuple[str, AskedMode]:
    if model == gateway.base.name:
        return "", "base"
    namespace, colon, mode = model.partition(":")
    chosen = next((known for known in MODES if known == (mode if colon else "lora")), None)
    if chosen is not None:
        with gateway.database.read() as session:
            if session.get(Namespace, namespace) is not None:
                return namespace, chosen
    raise NotFound("model", model)


def _sampling(gateway: Gateway, wanted: GenerationFields, mode: AskedMode, logprobs: int | None) -> Sampling:
    return wanted.sampling(
        max_tokens_limit=gateway.settings.max_tokens_limit,
        window=gateway.settings.max_model_len,
        default_temperature=1.0 if mode == "base" else 0.0,
        logprobs=logprobs,
    )


def _chat_ask(wanted: ChatIn, namespace: str, mode: AskedMode, sampling: Sampling) -> Ask:
    turns = [message.flat() for message in wanted.messages]
    if turns[-1]["role"] != "user":
        raise InvalidValue(
            "the last message must be the user's", key="messages", value=turns[-1]["role"], allowed="role user"
        )
    return Ask(turns[-1]["content"], mode, namespace, sampling, history=answered(turns[:-1]), key="messages")


def _completion_events(
    gateway: Gateway, prompt: str, namespace: str, mode: AskedMode, sampling: Sampling
) -> AsyncGenerator[Event, None]:
    if namespace:
        return observed(gateway, Ask(prompt, mode, namespace, sampling, key="prompt"))
    return gateway.answerer.complete(prompt, sampling)


async def _chat_stream(
    head: Json, events: AsyncGenerator[Event, None], *, top: int | None, usage: bool
) -> AsyncGenerator[bytes, None]:
    yield _data(replies.chat_chunk(head, {"role": "assistant", "content": ""}))
    async for item in events:
        if isinstance(item, Token):
            logprobs = replies.chat_logprobs([item], top)
            yield _data(replies.chat_chunk(head, {"content": item.text}, None, logprobs))
        elif isinstance(item, Done):
            yield _data(replies.chat_chunk(head, {}, item.finish_reason))
            if usage:
                yield _data(replies.chat_usage_chunk(head, item))
    yield _data("[DONE]")


async def _completion_stream(
    head: Json, events: AsyncGenerator[Event, None], *, logprobs: bool, usage: bool
) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for item in events:
        if isinstance(item, Token):
            scored = replies.completion_logprobs([item], seen) if logprobs else None
            seen += sum(len(one.token) for one in item.logprobs)
            yield _data(json.dumps(replies.completion_chunk(head, item.text, None, scored)))
        elif isinstance(item, Done):
            yield _data(json.dumps(replies.completion_chunk(head, "", item.finish_reason, None)))
            if usage:
                yield _data(json.dumps(replies.completion_usage_chunk(head, item)))
    yield _data("[DONE]")


def _failure(error: Exception) -> bytes:
    return _data(json.dumps(openai_error(known(error))))


def _head(prefix: str, model: str) -> Json:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _data(text: str) -> bytes:
    return f"data: {text}\n\n".encode()
