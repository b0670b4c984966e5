"""generate(), stream() and Conversation as Python calls them: the model may also be what anytune.load takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from anytune.arguments import speaking_python
from anytune.generation import conversation, public
from anytune.hub.load import opened_model

Call = TypeVar("Call", bound=Callable)


def _opening(call: Call) -> Call:
    @functools.wraps(call)
    def opened(model: Any, *args: Any, **options: Any) -> Any:
        with speaking_python():
            held = opened_model(model)
        return call(held, *args, **options)

    return opened  # type: ignore[return-value]


generate = _opening(public.generate)
stream = _opening(public.stream)


class Conversation(conversation.Conversation):
    __doc__ = conversation.Conversation.__doc__

    @functools.wraps(conversation.Conversation.__init__)
    def __init__(self, model: Any, *args: Any, **options: Any) -> None:
        _opening(super().__init__)(model, *args, **options)
