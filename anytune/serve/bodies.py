"""What requests may say, in OpenAI's names, with llama-server's beside them. What is not listed is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=1 << 24)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=1 << 20)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoraScale(Strict):
    """llama-server's: an adapter's number, and how strongly it acts."""

    id: int = Field(ge=0, lt=1 << 31)
    scale: float = Field(ge=-100, le=100, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Generation(Strict):
    """What chat and completions share. Fields without an effect on the answer are accepted and not used: user,
    metadata, store, service_tier, prompt_cache_key, safety_identifier, cache_prompt."""

    model: Text | None = None
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=64)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: Text | Annotated[list[Text], Field(max_length=64)] | None = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    # llama-server's
    top_k: int | None = Field(None, ge=0, lt=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, lt=100)
    repeat_last_n: int | None = Field(None, ge=-1, lt=1 << 31)
    ignore_eos: bool = False
    lora: Annotated[list[LoraScale], Field(max_length=256)] | None = None
    cache_prompt: bool | None = None
    # without an effect
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None

    @property
    def stops(self) -> list[str]:
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if text]

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Function(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")


class ToolChoice(Strict):
    type: Literal["function"]
    function: ChosenFunction


class Chat(Generation):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1 << 16)]
    max_completion_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class Completion(Generation):
    prompt: Text | Ids | Annotated[list[Text | Ids], Field(max_length=256)]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = False
    best_of: int | None = Field(None, ge=1, le=1)
    suffix: None = None


class Embedding(Strict):
    model: Text | None = None
    input: Text | Ids | Annotated[list[Text | Ids], Field(max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: Any = None
    lora: Annotated[list[LoraScale], Field(max_length=256)] | None = None


class LoadAdapter(BaseModel):
    """vLLM's; its further fields are about how vLLM computes."""

    lora_name: str
    lora_path: Text
    load_inplace: bool = False


class UnloadAdapter(BaseModel):
    lora_name: str
    lora_int_id: int | None = None
