"""From a request's body to requests of the scheduler: names, prompts, how tokens are chosen, forms and tools."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.generation.prompts import encode_rendered
from anytune.generation.sampling import Sampling
from anytune.serve.answer import Answer, Event, Request
from anytune.serve.backend import Mix
from anytune.serve.bodies import Chat, Completion, Embedding, Generation
from anytune.serve.choosing import Choice
from anytune.serve.grammar import Grammars
from anytune.serve.scheduler import Scheduler
from anytune.serve.served import Catalog
from anytune.serve.tooling import Tooling, chosen
from anytune.text.chat import ChatTemplate

TEMPLATES = 16  # compiled templates that are kept, beside the base's
CALLS = 256  # answers of one request


@dataclass(frozen=True)
class Call:
    """What a body asks for. label: the model's name in the answer; tooling: how calls are read, None: they are not."""

    requests: list[Request]
    label: str
    tooling: Tooling | None = None


class Service:
    """One base model, served. Methods block: they are called in threads."""

    def __init__(
        self,
        gguf: Any,
        tokenizer: Any,
        scheduler: Scheduler,
        catalog: Catalog,
        vocabulary: int,
        template: ChatTemplate | None = None,
    ):
        self.gguf, self.tokenizer, self.scheduler, self.catalog = gguf, tokenizer, scheduler, catalog
        self.template = template or ChatTemplate.for_model(gguf, tokenizer)
        self.vocabulary, self.grammars = vocabulary, Grammars(tokenizer, vocabulary)
        self.templates: OrderedDict[str | None, ChatTemplate] = OrderedDict()
        self.toolings: OrderedDict[str, Tooling] = OrderedDict()

    def chat(self, body: Chat, deliver: Callable[[int, Event], None]) -> tuple[Call, list[Answer]]:
        """Start a conversation's answers. Raises UserError."""
        with self.catalog.lock:
            mix, source, label = self._mix(body)
            template = self._template(source)
            tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
            choice = body.tool_choice if isinstance(body.tool_choice, str | None) else body.tool_choice.model_dump()
            called = any(message.get("tool_calls") or message.get("role") == "tool" for message in body.messages)
            tooling = self._tooling(template) if tools or called else None
            use = tools if choice != "none" else []
            ids = self._prompt(body, template, tooling, use)
            grammar = self._grammar(body, tooling, use, choice)
            top = (body.top_logprobs or 0) if body.logprobs else None
            if body.top_logprobs is not None and not body.logprobs:
                raise UserError("top_logprobs needs logprobs: true.")
            request = self._request(body, ids, mix, body.limit, top, grammar, special=bool(use))
            return self._start(Call(self._copies(request, body.n), label, tooling if use else None), deliver)

    def completion(self, body: Completion, deliver: Callable[[int, Event], None]) -> tuple[Call, list[Answer]]:
        """Start texts' continuations. Raises UserError."""
        with self.catalog.lock:
            mix, _, label = self._mix(body)
            if body.echo and body.logprobs is not None:
                raise UserError("echo with logprobs would need the prompt's own log-probabilities: omit one of them.")
            grammar = self._grammar(body, None, [], None)
            limit = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default
            requests = [
                copy
                for ids in self.prompts(body.prompt)
                for copy in self._copies(self._request(body, ids, mix, limit, body.logprobs, grammar), body.n)
            ]
            return self._start(Call(requests, label), deliver)

    def embeddings(self, body: Embedding) -> tuple[list[np.ndarray], list[int], str]:
        """(vectors of length 1, tokens of each text, the model's name). Raises UserError."""
        inputs = self.prompts(body.input, bos=None)
        with self.catalog.lock:
            mix, _, label = self._mix(body)
            for ids in inputs:
                if not 0 < len(ids) <= self.scheduler.backend.context:
                    raise UserError(
                        f"An input has {len(ids)} tokens, and from 1 to {self.scheduler.backend.context} can "
                        "be embedded."
                    )
            futures = [self.scheduler.embed(ids, mix) for ids in inputs]
        sums = [future.result() for future in futures]
        if body.dimensions not in (None, len(sums[0]) if sums else None):
            raise UserError(f"The model's embeddings have {len(sums[0])} dimensions: omit dimensions.")
        return [made / max(float(np.linalg.norm(made)), 1e-30) for made in sums], [len(ids) for ids in inputs], label

    def prompts(self, given: Any, bos: bool | None = False) -> list[list[int]]:
        """Token ids of one or several prompts, each text or ids; as `anytune generate --raw` reads them."""
        many = isinstance(given, list) and (not given or isinstance(given[0], str | list))
        found = []
        for prompt in given if many else [given]:
            if isinstance(prompt, str):
                bos_too = self.tokenizer.add_bos if bos is False else None
                found.append(self.tokenizer.encode(prompt, special=bos is False, bos=bos_too))
            else:
                if wrong := next((token for token in prompt if token >= self.vocabulary), None):
                    raise UserError(f"The token {wrong} is beyond the vocabulary of {self.vocabulary}.")
                found.append(list(prompt))
        if not found:
            raise UserError("There is no prompt.")
        return found

    def _mix(self, body: Generation | Embedding) -> tuple[Mix, str | None, str]:
        lora = None if body.lora is None else [(entry.id, entry.scale) for entry in body.lora]
        return self.catalog.mix(body.model, lora)

    def _template(self, source: str | None) -> ChatTemplate:
        if source is None:
            return self.template
        if source not in self.templates:
            self.templates[source] = ChatTemplate(source, self.tokenizer)
            if len(self.templates) > TEMPLATES:
                self.templates.popitem(last=False)
        return self.templates[source]

    def _tooling(self, template: ChatTemplate) -> Tooling:
        if template.source not in self.toolings:
            self.toolings[template.source] = Tooling.of(template)
            if len(self.toolings) > TEMPLATES:
                self.toolings.popitem(last=False)
        return self.toolings[template.source]

    def _prompt(self, body: Chat, template: ChatTemplate, tooling: Tooling | None, tools: list[dict]) -> list[int]:
        messages: Sequence[dict] = body.messages
        more = dict(body.chat_template_kwargs or {})
        if body.reasoning_effort is not None:
            more["reasoning_effort"] = body.reasoning_effort
        if taken := sorted(set(more) & {"messages", "tools", "documents", "add_generation_prompt", "form", "self"}):
            raise UserError(f"chat_template_kwargs may not set {taken[0]}.")
        if tooling is not None:
            messages = tooling.messages(messages, tools)
        shown = tools if tooling is not None and tooling.told else None
        return encode_rendered(self.tokenizer, template.render(messages, shown or None, True, **more))

    def _grammar(self, body: Generation, tooling: Tooling | None, tools: list[dict], choice: Any) -> str | None:
        """llguidance's grammar of the answer; None: it is free."""
        schema = _schema(body.response_format)
        must = chosen(tools, choice) if tools else None
        if choice == "required" and not tools or isinstance(choice, dict) and not tools:
            raise UserError("tool_choice requires a call, but there are no tools.")
        if must is not None:
            return tooling.grammar(must, self.tokenizer)
        if schema is None:
            return None
        return tooling.grammar(tools, self.tokenizer, schema) if tools else self.grammars.json(schema)

    def _request(
        self,
        body: Generation,
        ids: list[int],
        mix: Mix,
        limit: int | None,
        top: int | None,
        grammar: str | None,
        special: bool = False,
    ) -> Request:
        names = ("temperature", "top_k", "min_p", "repeat_penalty", "repeat_last_n")
        given = {name: value for name in names if (value := getattr(body, name)) is not None}
        if body.top_p is not None:
            given["top_p"] = body.top_p or 1e-9  # OpenAI's 0: the likeliest alone
        seed = None if body.seed is None else body.seed % (1 << 63)
        bias = {}
        for key, value in (body.logit_bias or {}).items():
            if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= self.vocabulary:
                raise UserError(f"logit_bias: {key[:20]!r} is not a token of this model.")
            if not -1000 <= value <= 1000:
                raise UserError("logit_bias takes numbers from -1000 to 1000.")
            bias[int(key)] = value
        if body.ignore_eos:
            bias |= dict.fromkeys(self.tokenizer.eog, -np.inf)
        how = Choice(Sampling(seed=seed, **given), body.frequency_penalty or 0.0, body.presence_penalty or 0.0, bias)
        matcher = None if grammar is None else partial(self.grammars.matcher, grammar)
        if grammar is not None:
            self.grammars.matcher(grammar)  # refused now rather than later
        return Request(ids, mix, how, max_tokens=limit, stop=body.stops, top=top, matcher=matcher, special=special)

    def _copies(self, request: Request, n: int | None) -> list[Request]:
        return [dataclasses.replace(request, number=number) for number in range(n or 1)]

    def _start(self, call: Call, deliver: Callable[[int, Event], None]) -> tuple[Call, list[Answer]]:
        if len(call.requests) > CALLS:
            raise UserError(f"One request may ask for {CALLS} answers at most.")
        answers: list[Answer] = []
        try:
            for number, request in enumerate(call.requests):
                answers.append(self.scheduler.submit(request, partial(deliver, number)))
        except UserError:
            for answer in answers:
                self.scheduler.cancel(answer)
            raise
        return call, answers


def _schema(given: dict[str, Any] | None) -> Any:
    """The JSON schema of a response_format; None where text is asked for. Raises UserError."""
    kind = (given or {"type": "text"}).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = given.get("schema", {"type": "object"})
    elif kind == "json_schema":
        inner = given.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
    else:
        raise UserError("response_format.type must be text, json_object or json_schema.")
    if not isinstance(schema, dict | bool):
        raise UserError("response_format has no schema: give json_schema.schema, a JSON schema.")
    return schema
