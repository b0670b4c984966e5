"""What commands share: options of a model and of an engine, sizes with units, JSON and notes."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

_debug = False


def debug_wanted() -> bool:
    """Whether the command line that runs has --debug (or ANYTUNE_DEBUG=1 is in the environment)."""
    return _debug or os.environ.get("ANYTUNE_DEBUG", "") not in ("", "0")


def set_debug(value: bool) -> None:
    global _debug
    _debug = value


def _take_debug(_context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        set_debug(True)


DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    hidden=True,
    expose_value=False,
    is_eager=True,
    callback=_take_debug,
    help="Show tracebacks.",
)


ADVANCED = "Advanced"
ADVANCED_OPTIONS = ("tf32", "max_binding", "ngl", "flash_attn")  # rarely needed, or accepted for other programs' sake


class Command(click.Command):
    """A command that also knows --debug and shows its example under --help.

    sections: parameter name -> title under which --help shows it ("Options" for the others). renamed: flags that were
    called otherwise in versions before -> their names now; the old ones work, with a notice.
    """

    def __init__(
        self,
        *args: Any,
        example: str = "",
        sections: dict[str, str] | None = None,
        renamed: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.example, self.sections = example, (sections or {}) | dict.fromkeys(ADVANCED_OPTIONS, ADVANCED)
        self.renamed = renamed or {}
        self.params.append(DEBUG)
        for param in self.params:
            if isinstance(param.type, click.types.StringParamType) and param._custom_shell_complete is None:
                param._custom_shell_complete = _completed

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [self._renamed(arg) for arg in args] if self.renamed else args)

    def _renamed(self, arg: str) -> str:
        flag, equals, value = arg.partition("=")
        if flag not in self.renamed:
            return arg
        note(f"{flag} is now {self.renamed[flag]}")
        return self.renamed[flag] + equals + value

    def make_parser(self, ctx: click.Context) -> Any:
        """click's own, but -st is never -s with the value t: a letter is followed by a number, or by nothing."""
        parser = super().make_parser(ctx)
        short = parser._match_short_opt

        def strict(arg: str, state: Any) -> None:
            if len(arg) > 2 and not _NUMBER.fullmatch(arg[2:]):
                raise click.NoSuchOption(arg, possibilities=_close(arg, parser._long_opt), ctx=ctx)
            short(arg, state)

        parser._match_short_opt = strict
        return parser

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                rows.setdefault(self.sections.get(param.name or "", "Options"), []).append(record)
        for title, records in sorted(rows.items(), key=lambda row: row[0] == ADVANCED):  # which comes last
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                for line in self.example.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n" if line.strip() else "\n")


def _completed(_ctx: click.Context, param: click.Parameter, incomplete: str) -> list:
    from anytune.cli.completion import complete

    return complete(param, incomplete)


_NUMBER = re.compile(r"=?-?[0-9.]+(e-?[0-9]+)?")


def _close(arg: str, known: Iterable[str]) -> list[str] | None:
    return difflib.get_close_matches(arg, known) or None


class Size(click.ParamType):
    """Bytes with a unit, see anytune.memory."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from anytune.memory import parse_bytes

        try:
            return parse_bytes(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


SIZE = Size()
DTYPES = ("auto", "bf16", "fp16", "f32", "fp8")
_ENGINE_OPTIONS = (
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="What computes: auto (a GPU, else the CPU, where adapters train on cpu-bf16 if that runs), "
        "cuda, cuda:1, rocm, xpu, mps, webgpu, cpu-bf16, numpy (float32), or fpga-sim (the "
        "hardware cores' arithmetic).",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="auto",
        show_default=True,
        help="Number format of a GPU's products. auto: bf16 where there is one; webgpu: f32. "
        "fp8: bf16, and gradients of an adapter pass frozen weights in fp8 (RTX 40, H100 and later).",
    ),
    click.option("--tf32", is_flag=True, help="Let float32 products run on tensor cores, with 10 bits of mantissa."),
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="CPU threads. Default: the cores that there are. Results do not depend on it.",
    ),
    click.option(
        "--memory",
        type=SIZE,
        metavar="SIZE",
        help="Memory to stay within, such as 300MiB (on a GPU, of its memory): weights are streamed if they must be.",
    ),
    click.option(
        "--max-binding",
        type=SIZE,
        metavar="SIZE",
        help="With webgpu: a lower limit than the device's for what a kernel sees at once, such as 128MiB.",
    ),
    click.option(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        "ngl",
        metavar="N",
        help="As in llama.cpp: 0 keeps to the CPU, anything else lets --device auto take a GPU. "
        "Layers are not split between devices.",
    ),
    click.option(
        "-fa",
        "--flash-attn",
        "flash_attn",
        type=click.Choice(["on", "off", "auto"]),
        help="Accepted as llama.cpp does; attention here never stores the whole T x T matrix.",
    ),
)


def model_options(command: Callable) -> Callable:
    """Add -m and the options of the engine; the command gets `engine` as a dict for `load_model`."""
    import functools

    @functools.wraps(command)
    def gathered(
        *args: Any,
        device: str,
        dtype: str,
        tf32: bool,
        threads: int | None,
        memory: int | None,
        max_binding: int | None,
        ngl: str | None,
        flash_attn: str | None,
        **kwargs: Any,
    ) -> Any:
        return command(
            *args,
            engine={
                "device": device,
                "dtype": dtype,
                "tf32": tf32,
                "threads": threads,
                "memory": memory,
                "max_binding": max_binding,
                "ngl": ngl,
            },
            **kwargs,
        )

    for option in reversed(_ENGINE_OPTIONS):
        gathered = option(gathered)
    return model_option(gathered)


model_option = click.option(
    "-m",
    "--model",
    required=True,
    metavar="GGUF",
    help="The model: a GGUF file, or a name of `anytune models`: ollama:qwen3:1.7b, lmstudio:…, hf:owner/repo:file.",
)
lora_option = click.option("--lora", metavar="ADAPTER", help="A LoRA adapter: a GGUF file or a peft folder.")


def _take_force(context: click.Context, _option: click.Parameter, value: bool) -> None:
    context.meta["anytune.force"] = value


def forced() -> bool:
    """Whether the command line that runs has --force."""
    return click.get_current_context().meta.get("anytune.force", False)


force_option = click.option(
    "--force", is_flag=True, expose_value=False, callback=_take_force, help="Replace an output that exists already."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def model_path(name: str) -> Path:
    """The file that -m means. Raises UserError for what cannot be a readable file."""
    from anytune.hub.pull import local

    return existing_file(local(name), "model")


def existing_file(path: str | Path, what: str) -> Path:
    """`path` if it is a file that can be read, else a UserError that says why not."""
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a {what} file: name the file itself.")
        if not path.exists():
            raise UserError(
                f"There is no {what} file {path}: check the path"
                + (" or fetch one with `anytune pull smollm2-135m`." if what == "model" else ".")
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)[:200]!r} cannot be a {what} file: {error}.") from None
    if not os.access(path, os.R_OK):
        raise UserError(f"The {what} file {path} may not be read by you: change its permissions.")
    return path


def text_file(path: str | Path, what: str) -> Path:
    """`path` as existing_file() has it, but "-" stands for standard input, and hf:owner/dataset is fetched."""
    if os.fspath(path).startswith("hf:"):
        (found, *more) = data_files([os.fspath(path)])
        if more:
            raise UserError(
                f"{path} is {len(more) + 1} files, and one is needed here: name it, as in hf:OWNER/DATASET:FILE."
            )
        return Path(found)
    return Path(path) if os.fspath(path) == "-" else existing_file(path, what)


def template_file(name: str) -> str | Path:
    """What --chat-template means: a built-in template's name, a file, or "-". Raises UserError."""
    from anytune.text.named import NAMES

    if name in NAMES or os.fspath(name) == "-" or Path(name).expanduser().exists():
        return name if name in NAMES else text_file(name, "template")
    raise UserError(
        f"There is no template file {name}, and no built-in template of that name: check the path, or take "
        f"one of {', '.join(NAMES)}."
    )


def data_files(paths: Iterable[str]) -> tuple[str, ...]:
    """The paths, hf:owner/dataset replaced by the files that are fetched. UserError unless each is a file of data, a
    folder, or "-"."""
    found: list[str] = []
    for path in paths:
        if path.startswith("hf:"):
            from anytune.hub.datasets import fetch

            found += map(str, fetch(path))
            continue
        if not os.path.isdir(path):
            text_file(path, "data")
        found.append(path)
    return tuple(found)


def read_text(path: str | Path, what: str = "text") -> str:
    """The UTF-8 text in a file, or of standard input for "-", as it is: "\\r\\n" stays, a byte order mark goes. Raises
    UserError."""
    from anytune.text.reading import read_text as read

    return read(text_file(path, what))


def layers_device(ngl: str, device: str) -> str:
    """The device that llama.cpp's -ngl means: 0 layers on the GPU is the CPU. Raises UserError."""
    if not (ngl.lstrip("-").isdigit() or ngl in ("all", "auto")):
        raise UserError(f"-ngl takes a number, all or auto, not {ngl!r}.")
    return "cpu" if ngl == "0" and device == "auto" else device


def load_model(name: str, engine: dict[str, Any]) -> Model:
    """Open the model on the device that the options ask for."""
    path = model_path(name)
    ngl = engine["ngl"]
    device = engine["device"]
    if ngl is not None:
        device = layers_device(ngl, device)
    import anytune

    model = anytune.load(
        path,
        device=device,
        threads=engine["threads"],
        memory=engine["memory"],
        dtype=engine["dtype"],
        tf32=engine["tf32"],
        max_binding=engine["max_binding"],
    )
    if ngl not in (None, "0") and model.engine.name in ("numpy", "cpu-bf16", "cpu-torch"):
        note(f"-ngl {ngl} has no effect: this runs on the CPU")
    model.asked = engine["device"]  # -ngl 0 leaves the choice among the CPU's engines
    return model


def load_adapter(path: str | None, model: Model) -> Adapter | None:
    """The adapter of --lora, for the model it was trained on."""
    if path is None:
        return None
    from anytune.adapter.adapter import Adapter

    where = Path(path).expanduser()
    found = Adapter.load(where if where.is_dir() else existing_file(where, "adapter"), gguf=model.gguf)
    if (remark := found.other_base(model.gguf)) is not None:
        note(remark)
    return found


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; NumPy numbers and paths become plain ones, NaN becomes null."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=_plain, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def note(text: str) -> None:
    """A remark beside the result: on stderr, so that stdout stays the result."""
    click.echo(f"note: {text}", err=True)
