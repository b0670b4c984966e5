"""Options that many commands have: of a model and its engine, --lora, --force, --json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from anytune.errors import UserError


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
TF32 = click.option("--tf32", is_flag=True, help="Let float32 products run on tensor cores, with 10 bits of mantissa.")
MAX_BINDING = click.option(
    "--max-binding",
    type=SIZE,
    metavar="SIZE",
    help="With webgpu: limit the size of a binding, such as 128MiB.  [default: the device's limit]",
)
_ENGINE_OPTIONS = (
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="NAME",
        help="Device: auto (a GPU, else the CPU, where adapters are trained on cpu-bf16 if supported), cuda, "
        "cuda:1, rocm, xpu, mps, webgpu, cpu-bf16, numpy (float32), or fpga-sim (the hardware cores' arithmetic).",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="auto",
        show_default=True,
        help="Number format of a GPU's matrix products. auto: bf16 if supported; webgpu: f32. fp8: bf16, with "
        "gradients through frozen weights in fp8 (RTX 40, H100 and later).",
    ),
    TF32,
    click.option(
        "-t",
        "--threads",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="CPU threads. Default: all cores. Results do not depend on it.",
    ),
    click.option(
        "--memory",
        type=SIZE,
        metavar="SIZE",
        help="Memory budget, such as 300MiB (on a GPU, of GPU memory); weights are streamed if necessary.",
    ),
    MAX_BINDING,
    click.option(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        "ngl",
        metavar="N",
        help="As in llama.cpp: 0 stays on the CPU, anything else lets --device auto use a GPU. Layers are not "
        "split between devices.",
    ),
    click.option(
        "-fa",
        "--flash-attn",
        "flash_attn",
        type=click.Choice(["on", "off", "auto"]),
        help="Accepted for compatibility with llama.cpp; attention never stores the whole T x T matrix.",
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
template_option = click.option(
    "--chat-template",
    metavar="FILE|NAME",
    help="A Jinja chat template instead of the model's own: a file, or chatml, gemma, llama3, phi3 or zephyr.",
)
stop_option = click.option(
    "--stop",
    "-r",
    "--reverse-prompt",
    "stop",
    multiple=True,
    metavar="TEXT",
    help="Stop at this text. May be repeated.",
)
lora_option = click.option("--lora", metavar="ADAPTER", help="A LoRA adapter: a GGUF file or a peft folder.")


def _take_force(context: click.Context, _option: click.Parameter, value: bool) -> None:
    context.meta["anytune.force"] = value


def forced() -> bool:
    """Whether the command line that runs has --force."""
    return click.get_current_context().meta.get("anytune.force", False)


force_option = click.option(
    "--force", is_flag=True, expose_value=False, callback=_take_force, help="Replace an existing output."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
