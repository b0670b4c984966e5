"""Arguments of the Python API: other libraries' names for them, their types, and messages that name them.

Deep inside, messages name the command line's flags. Where Python called, `speaking_python` puts the arguments' names in
their place, by a table.
"""

from __future__ import annotations

import builtins
import contextlib
import difflib
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from anytune.errors import UserError
from anytune.words import INSTEAD, SAYS_NOTHING, python_words

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def speaking_python() -> Iterator[None]:
    """Errors that leave this block name arguments instead of flags."""
    try:
        yield
    except UserError as error:
        if error.args and isinstance(error.args[0], str):
            error.flags = error.flags or error.args[0]  # what the command line says
            error.args = (python_words(error.args[0]), *error.args[1:])
        raise


def public(synonyms: Mapping[str, str] | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For a function of the API: arguments by other libraries' names, unknown ones and wrong types refused in a
    sentence (UserError), and errors that name arguments instead of flags. synonyms: other name -> ours."""

    def wrapped(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with speaking_python():
                given = _bound(function, args, kwargs, synonyms or {})
                try:
                    return function(*given.args, **given.kwargs)
                except OSError as error:
                    if error.filename is None:
                        raise
                    raise UserError(f"{os.fsdecode(error.filename)[:200]}: {error.strerror or error}.") from error

        return call

    return wrapped


def fields(kind: type, synonyms: Mapping[str, str] | None = None) -> None:
    """The same for the fields of a dataclass."""
    plain = kind.__init__  # type: ignore[misc]

    @functools.wraps(plain)
    def init(*args: Any, **kwargs: Any) -> None:
        with speaking_python():
            given = _bound(plain, args, kwargs, synonyms or {})
            plain(*given.args, **given.kwargs)

    kind.__init__ = init  # type: ignore[misc]


def between(low: int, high: int | None = None, **values: int | None) -> None:
    """Raise UserError for a value that is below `low` or above `high`; None is passed over."""
    for name, value in values.items():
        if value is not None and (value < low or high is not None and value > high):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"{name} must be {limits}, not {value}.")


def _bound(function: Callable, args: tuple, kwargs: dict[str, Any], synonyms: Mapping[str, str]) -> Any:
    signature, name = inspect.signature(function), _name(function)
    known = [p.name for p in signature.parameters.values() if p.name not in ("self", "cls")]
    for word in [word for word in kwargs if word not in known]:
        ours = synonyms.get(word)
        if ours is None and word in SAYS_NOTHING and kwargs[word] == SAYS_NOTHING[word]:
            del kwargs[word]
            continue
        if ours is None and word in INSTEAD:
            raise UserError(f"{name} has no argument {word!r}: {INSTEAD[word]}.")
        if ours is None:
            near = difflib.get_close_matches(word, [*known, *synonyms], 1)
            said = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}."
            raise UserError(f"{name} has no argument {word!r}: {said}")
        if ours in kwargs:
            raise UserError(f"{name}: {word} and {ours} are the same argument; give one of them.")
        kwargs[ours] = kwargs.pop(word)
    try:
        given = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"{name}: {error}.") from None
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    for word, value in given.arguments.items():
        hint = signature.parameters[word].annotation
        if hint is inspect.Parameter.empty or value is signature.parameters[word].default:
            continue
        good, given.arguments[word] = _fits(value, _hint(hint, scope))
        if not good:
            raise UserError(f"{name}: {word} must be {_words(hint)}, not {value!r:.80} ({type(value).__name__}).")
    return given


def _name(function: Callable) -> str:
    """As it is called: finetune(), Lora()."""
    owner, _, name = function.__qualname__.rpartition(".")
    return f"{owner if name == '__init__' else name}()"


def _hint(hint: Any, scope: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    return eval(hint, {}, _Scope(scope))  # our own annotations, which `from __future__ import annotations` made text


class _Scope(dict):
    """A module's names. One that is imported for type checkers alone is a class of that name, made here."""

    def __missing__(self, name: str) -> Any:
        found = getattr(builtins, name, None)
        return type(name, (_Unseen,), {}) if found is None else found


class _Unseen:
    """A class that is known by its name; those in BY_NAME are told from others."""

    BY_NAME = ("GGUF", "ChatTemplate")

    @classmethod
    def takes(cls, value: Any) -> bool:
        return cls.__name__ not in cls.BY_NAME or cls.__name__ in (one.__name__ for one in type(value).__mro__)


def _fits(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a value fits an annotation, and the value: NumPy's numbers as Python's own."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        found = [_fits(value, part) for part in typing.get_args(hint)]
        return next((fit for fit in found if fit[0]), (False, value))
    if hint is None or hint is type(None):
        return value is None, value
    if hint is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return True, float(value)
    if hint is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return True, int(value)
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str | int) and value in typing.get_args(hint), value
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if isinstance(kind, type) and issubclass(kind, _Unseen):
        return kind.takes(value), value
    if kind is str or kind is os.PathLike:
        return isinstance(value, kind) and "\0" not in os.fspath(value), value
    if kind is Any or not isinstance(kind, type) or kind in (float, int):
        return kind not in (float, int), value
    return isinstance(value, kind) and _holds(value, kind, parts), value


def _holds(value: Any, kind: type, parts: tuple) -> bool:
    """Whether what is in a container fits its annotation: Sequence[str], Mapping[str, str], tuple[str, str]."""
    if kind in (Sequence, Iterable, list) and isinstance(value, str | bytes):
        return False
    if kind is tuple and parts:
        return len(value) == len(parts) and all(_fits(item, part)[0] for item, part in zip(value, parts, strict=True))
    if kind is Mapping and parts:
        return all(_fits(key, parts[0])[0] and _fits(item, parts[1])[0] for key, item in value.items())
    return kind not in (Sequence, list) or not parts or all(_fits(item, parts[0])[0] for item in value)


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "True or False",
    "os.PathLike": "a path",
    "FilePath": "a path",
    "Data": "a path, a list of paths, or an iterable of dicts",
    "Iterable": "an iterable of dicts",
    "Sequence[str]": "a list of texts",
}


def _words(hint: Any) -> str:
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
    return " or ".join(_WORDS.get(part, part) for part in text.split(" | "))
