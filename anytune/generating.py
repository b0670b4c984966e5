"""generate(), stream() and Conversation as Python calls them: the model may also be what anytune.load takes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from anytune.arguments import speaking_python
from anytune.generation import conversation, public
from anytune.hub.load import opened_model


def _opening(call: Callable) -> Callable:
    @functools.wraps(call)
    def opened(model: Any, *args: Any, **options: Any) -> Any:
        with speaking_python():
            held = opened_model(model)
        return call(held, *args, **options)

    return opened


if TYPE_CHECKING:  # what type checkers and editors see
    from typing import Unpack

    from anytune.adapter.resolve import AdapterLike
    from anytune.generation.public import Options, Prompt, Turns
    from anytune.generation.sampling import Sampling
    from anytune.model import Model

    ModelLike = Model | str | os.PathLike

    @overload  # text is a sequence of texts, but never meant as one
    def generate(model: ModelLike, prompt: Prompt, adapter: AdapterLike = None, **options: Unpack[Options]) -> str: ...

    @overload
    def generate(
        model: ModelLike, prompt: Sequence[str], adapter: AdapterLike = None, **options: Unpack[Options]
    ) -> list[str]: ...

    def generate(model: Any, prompt: Any, adapter: AdapterLike = None, **options: Any) -> Any: ...

    def stream(
        model: ModelLike, prompt: Prompt, adapter: AdapterLike = None, **options: Unpack[Options]
    ) -> Iterator[str]: ...

    class Conversation(conversation.Conversation):
        def __init__(
            self,
            model: ModelLike,
            adapter: AdapterLike = None,
            *,
            how: Sampling | None = None,
            **options: Unpack[Turns],
        ) -> None: ...

else:
    generate = _opening(public.generate)
    stream = _opening(public.stream)

    class Conversation(conversation.Conversation):
        __doc__ = conversation.Conversation.__doc__

        @functools.wraps(conversation.Conversation.__init__)
        def __init__(self, model: Any, *args: Any, **options: Any) -> None:
            _opening(super().__init__)(model, *args, **options)
