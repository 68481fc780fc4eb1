"""What /v1 accepts: the part of OpenAI's requests that loramem can honour. Anything else is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from server.api.fields import MAX_MESSAGE_CHARS, FilledMessage, MessageText, Text, check_max_tokens, not_blank
from server.api.schemas import RequestSchema, Schema
from server.engine.engine import Sampling

ModelName = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
Stop = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
LEAST_TOKENS = 64
"""Of an answer whose length nobody limits: a prompt that leaves less room is refused."""
MaxTokens = Annotated[
    int | None,
    Field(
        ge=1,
        le=1 << 20,
        description="default: a quarter of the model's window, LORAMEM_MAX_TOKENS_LIMIT at most, and less where the "
        f"prompt leaves less; it has to leave {LEAST_TOKENS}",
    ),
]


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "parallel_tool_calls": (False, True),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "tool_calls": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""What clients send of what loramem does not have, and what it asks for nothing with."""


class OpenAISchema(RequestSchema):
    @model_validator(mode="before")
    @classmethod
    def _null_is_unsaid(cls, data: Any) -> Any:
        """As OpenAI has it: its client sends an answer back as a turn, with null for what the answer lacks."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None and not _is_neutral(key, value)}


def _is_neutral(key: object, value: object) -> bool:
    return isinstance(key, str) and any(
        type(value) is type(neutral) and value == neutral for neutral in NEUTRAL.get(key, ())
    )


class TextPart(OpenAISchema):
    type: Literal["text"]
    text: MessageText


class ChatMessage(OpenAISchema):
    role: Literal["system", "developer", "user", "assistant"]
    content: MessageText | Annotated[list[TextPart], Field(min_length=1, max_length=200, fail_fast=True)]
    name: Text | None = Field(None, description="accepted for clients that send it; not used")

    @field_validator("content")
    @classmethod
    def _has_text(cls, content: str | list[TextPart], info: ValidationInfo) -> str | list[TextPart]:
        """An answer that was broken off before its first word may be sent back as it is."""
        text = _joined(content)
        if len(text) > MAX_MESSAGE_CHARS:
            raise ValueError(f"must hold at most {MAX_MESSAGE_CHARS} characters in all parts together")
        if info.data.get("role") != "assistant":
            not_blank(text)
        return content

    def flat(self) -> dict[str, str]:
        """Role and text as chat templates know them."""
        return {"role": "system" if self.role == "developer" else self.role, "content": _joined(self.content)}


def _joined(content: str | list[TextPart]) -> str:
    """Parts begin lines of their own, unless a blank is between them already."""
    joined = ""
    for text in [content] if isinstance(content, str) else [part.text for part in content]:
        joined += text if not joined or joined[-1].isspace() or text[:1].isspace() else f"\n{text}"
    return joined


class StreamOptions(OpenAISchema):
    include_usage: bool = False


class GenerationFields(OpenAISchema):
    model: ModelName
    max_tokens: MaxTokens = None
    temperature: float | None = Field(None, ge=0, le=2, description="default: 1 for the base model, 0 for a memory")
    top_p: float = Field(1.0, gt=0, le=1)
    n: Literal[1] = 1
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="accepted for clients that send it; not used")

    def sampling(
        self, *, max_tokens_limit: int, window: int, default_temperature: float, logprobs: int | None
    ) -> Sampling:
        """Raises `InvalidValue` for more tokens than the server allows."""
        key, wanted = self.wanted_tokens()
        if wanted is not None:
            check_max_tokens(key, wanted, max_tokens_limit, window)
        unlimited = min(max_tokens_limit, window // 4)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=wanted or unlimited,
            least_tokens=None if wanted else min(unlimited, LEAST_TOKENS),
            temperature=default_temperature if self.temperature is None else self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(stop),
            logprobs=logprobs,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )

    def wanted_tokens(self) -> tuple[str, int | None]:
        """By which key, and how many."""
        return "max_tokens", self.max_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatIn(GenerationFields):
    messages: list[ChatMessage] = Field(min_length=1, max_length=200, fail_fast=True)
    max_completion_tokens: MaxTokens = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)

    @field_validator("top_logprobs")
    @classmethod
    def _of_logprobs(cls, top: int, info: ValidationInfo) -> int:
        if top and not info.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return top

    def wanted_tokens(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is None:
            return super().wanted_tokens()
        return "max_completion_tokens", self.max_completion_tokens


class CompletionIn(GenerationFields):
    prompt: FilledMessage | Annotated[list[FilledMessage], Field(min_length=1, max_length=64)]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ModelOut(Schema):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "loramem"


class ModelList(Schema):
    object: Literal["list"] = "list"
    data: list[ModelOut]


class ErrorBody(Schema):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class ErrorOut(Schema):
    """OpenAI's error shape."""

    error: ErrorBody


Json = dict[str, Any]
