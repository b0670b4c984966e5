"""What names on the command line mean: files that are there, models and adapters, opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.cli.say import note
from anytune.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model


def model_path(name: str) -> Path:
    """The file that -m means. Raises UserError for what cannot be a readable file."""
    from anytune.hub.pull import local

    return existing_file(local(name), "model")


def existing_file(path: str | Path, what: str) -> Path:
    """`path` if it is a file that can be read, else a UserError that says why not."""
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: name the {what} file itself.")
        if not path.exists():
            raise UserError(
                f"There is no {what} file {path}: check the path"
                + (" or fetch one with `anytune pull smollm2-135m`." if what == "model" else ".")
            )
        readable = os.access(path, os.R_OK)
    except PermissionError:  # its folder may not be searched
        readable = False
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error  # without the path again
        raise UserError(f"{str(path)[:200]!r} cannot be the {what} file: {problem}.") from None
    if not readable:
        raise UserError(f"The {what} file {path} is not readable: change its permissions or its folder's.")
    return path


def text_file(path: str | Path, what: str) -> Path:
    """`path` as existing_file() returns it, but "-" is standard input, and hf:owner/dataset is fetched."""
    if os.fspath(path).startswith("hf:"):
        (found, *more) = data_files([os.fspath(path)])
        if more:
            raise UserError(
                f"{path} is {len(more) + 1} files, but one is needed here: name it, as in hf:OWNER/DATASET:FILE."
            )
        return Path(found)
    return Path(path) if os.fspath(path) == "-" else existing_file(path, what)


def template_file(name: str) -> str | Path:
    """What --chat-template means: a built-in template's name, a file, or "-". Raises UserError."""
    from anytune.text.named import NAMES

    if name in NAMES or os.fspath(name) == "-" or Path(name).expanduser().exists():
        return name if name in NAMES else text_file(name, "template")
    raise UserError(
        f"There is no template file {name}, and no built-in template of that name: check the path, or use one of "
        f"{', '.join(NAMES)}.{did_you_mean(name, NAMES)}"
    )


def template_text(name: str) -> str:
    """The Jinja source that --chat-template means. Raises UserError."""
    from anytune.text.named import named_template

    return named_template(template_file(name)) or read_text(name, "template")


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


def load_reference(name: str, engine: dict[str, Any]) -> Model:
    """load_model(), but --device auto is the float32 reference engine, not the fastest one: for numbers that are
    compared with other programs'."""
    return load_model(name, {**engine, "device": "numpy"} if engine["device"] == "auto" else engine)


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
