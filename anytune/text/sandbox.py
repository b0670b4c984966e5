"""Jinja for chat templates that come with a model file, and so from strangers: bounded in time and memory.

A template is rewritten when it is compiled: each loop, each printed value and each operator that makes a
larger value reports to a Meter, as do all filters, calls and tests. The meter counts what was made and looks
at the thread's clock, so that an endless loop ends in an error wherever it hides, in any thread and on any
system, without a process of its own. No value larger than the limit is ever made: growth is checked before
it happens where one call can multiply (`*`, replace, join, indent, formatting), and after it where it can at
most add up.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
import jinja2.ext
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from anytune.text.meter import NUMBER_BITS, LimitError, Meter
from anytune.text.sandbox_syntax import GenerationTag, Rewrite

SOURCE_LIMIT = 512 * 1024  # characters of a template
RANGE = 100_000
_WIDTH = 10_000

_FILTERS = """abs attr capitalize count d default dictsort e escape first float forceescape format groupby
    indent int items join last length list lower map max min pprint reject rejectattr replace
    reverse round safe select selectattr sort string striptags sum title tojson trim truncate
    unique upper urlencode wordcount xmlattr""".split()
# Methods of text that templates use and that make nothing larger than what they are given (or are checked
# below).
_STRING_METHODS = frozenset(
    """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix
    removesuffix rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
    join replace ljust rjust zfill""".split()
)


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with meters. `render` is the way in."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        # Not optimized: constant expressions would be computed while compiling, where no meter runs.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            autoescape=False,
            extensions=[jinja2.ext.loopcontrols, GenerationTag],
        )
        self.meter = Meter(0)
        wrapped = {name: self._metered(self.filters[name], name) for name in _FILTERS if name in self.filters}
        self.filters = wrapped | {"tojson": self._to_json, "_loop": self._loop, "_made": self._made}
        self.tests = {
            name: self._metered(test, None) for name, test in self.tests.items() if name not in ("filter", "test")
        }
        self.globals = {"dict": dict, "namespace": Namespace, "range": self._range}
        self.policies["json.dumps_kwargs"] = {}

    # What the rewritten template calls

    def _generate(self, source, name, filename, defer_init=False):
        return super()._generate(Rewrite().visit(source), name, filename, defer_init=defer_init)

    # These ask for the context only so that Jinja does not work them out once, while compiling.

    @jinja2.pass_context
    def _loop(self, context, values: Iterable) -> Iterable:
        meter = self.meter

        def steps():
            for value in values:
                meter.tick()
                meter.spend(1)
                yield value

        if isinstance(values, Undefined):
            return values
        return _Sized(steps(), len(values)) if hasattr(values, "__len__") else steps()

    @jinja2.pass_context
    def _made(self, context, value: Any) -> Any:
        return self.meter.made(value)

    # What the sandbox lets us watch

    def call(self, context, obj, /, *args, **kwargs):
        self.meter.tick()
        name, owner = getattr(obj, "__name__", ""), getattr(obj, "__self__", None)
        if isinstance(owner, str) and isinstance(name, str):
            self._check_growth(name, (owner, *args), kwargs)
        return self.meter.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context, operator, left, right):
        self.meter.tick()
        sizes = [len(v) if isinstance(v, str | list | tuple) else None for v in (left, right)]
        if operator == "*" and any(size is not None for size in sizes):
            times = right if sizes[0] is not None else left
            self.meter.spend(8 * (sizes[0] or sizes[1] or 0) * max(int(times), 0) if isinstance(times, int) else 0)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > NUMBER_BITS:
                raise LimitError("it computes an enormous number")
        elif operator == "%" and isinstance(left, str):
            self._check_growth("format", (left, right), {})
        elif operator == "+":
            self.meter.spend((sizes[0] or 0) + (sizes[1] or 0))
        return self.meter.made(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in _STRING_METHODS:
            return False
        if isinstance(obj, bytes | int | float):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any):
        """The sandbox's own str.format (where Jinja has none, is_safe_attribute refuses the method)."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def checked(*args, **kwargs):
            self._check_growth("format", (text, *args), kwargs)
            return wrapped(*args, **kwargs)

        return checked

    def _metered(self, function, name: str | None):
        @functools.wraps(function)
        def metered(*args, **kwargs):
            self.meter.tick()
            if name is not None:
                # Some filters are first given the context, the evaluation context or the environment.
                values = args[1:] if hasattr(function, "jinja_pass_arg") else args
                if name in ("string", "e", "escape", "forceescape", "safe", "pprint") and values:
                    self.meter.made(values[0])
                self._check_growth(name, values, kwargs)
            found = function(*args, **kwargs)
            return found if name is None else self.meter.made(found)

        return metered

    def _check_growth(self, name: str, args: tuple, kwargs: dict) -> None:
        """Charge for what one call is about to make, where that can exceed the sum of what it is given."""
        given = args[0] if args else ""
        if name == "replace" and len(args) > 2:
            text, old, new = (str(value) for value in args[:3])
            found = text.count(old) if old else len(text) + 1
            self.meter.spend(found * len(new))
        elif name == "join":
            values, between = (
                (args[1], given)
                if isinstance(given, str) and len(args) > 1 and not isinstance(args[1], str)
                else (given, args[1] if len(args) > 1 else kwargs.get("d", ""))
            )
            if isinstance(values, list | tuple | dict | str):
                self.meter.spend(
                    sum(len(v) if isinstance(v, str) else 16 for v in values) + len(str(between)) * len(values)
                )
        elif name == "indent":
            width = args[1] if len(args) > 1 else kwargs.get("width", 4)
            size = width if isinstance(width, int) else len(str(width))
            self.meter.spend(max(size, 0) * (str(given).count("\n") + 1))
        elif name in ("ljust", "rjust", "zfill", "center"):
            if len(args) > 1 and isinstance(args[1], int) and args[1] > _WIDTH:
                raise LimitError("it pads text to an enormous width")
        elif name == "format":
            # A width or precision, in either language of formats; `*` takes it from the arguments.
            if any(int(n) > _WIDTH for n in re.findall(r"\d{1,18}", str(given))) or re.search(
                r"\d{19}|%[^a-zA-Z%]*\*", str(given)
            ):
                raise LimitError("it formats text to an enormous width")
            self.meter.made([*args[1:], *kwargs.values()])
            if re.search(r":[^}]*\{", str(given)):
                raise LimitError("it computes the width of a format")
        elif name in ("truncate", "xmlattr", "urlencode"):
            self.meter.spend(8 * len(str(given)) if isinstance(given, str) else 0)

    # Replacements of what templates expect

    def _range(self, *args: int) -> range:
        found = range(*args)
        if len(found) > RANGE:
            raise LimitError(f"it asks for a range of {len(found):,} numbers")
        return found

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators=None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as chat templates are written for it: not escaped for HTML, Unicode kept."""
        if isinstance(indent, int) and indent > 16:
            raise LimitError("it indents JSON by an enormous width")
        self.meter.made(value)
        out = []

        def listed(other: Any) -> list:  # what `map` and `select` make, which templates write without `list`
            if not isinstance(other, Iterator):
                raise TypeError(f"a {type(other).__name__} has no form in JSON")
            return list(self._loop(None, other))

        encoder = json.JSONEncoder(
            default=listed,
            ensure_ascii=ensure_ascii,
            indent=indent,
            sort_keys=sort_keys,
            separators=tuple(separators) if separators else None,
        )
        for part in encoder.iterencode(value):
            self.meter.spend(len(part))
            out.append(part)
        return "".join(out)


class _Sized:
    """An iterator with a length, which `loop.length` and `loop.last` then need not work out by listing it."""

    def __init__(self, steps, size: int) -> None:
        self._steps, self._size = steps, size

    def __iter__(self):
        return self._steps

    def __len__(self) -> int:
        return self._size
