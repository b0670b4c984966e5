"""LM Studio's folder of models: <publisher>/<model>/*.gguf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from anytune.errors import UserError, did_you_mean
from anytune.hub.stored import Stored, gguf_files, joined, title


def folders() -> list[Path]:
    """Where models are: what its settings name, else its own folder; and that of old versions."""
    home = Path.home()
    chosen = home / ".lmstudio/models"
    try:
        named = json.loads((home / ".lmstudio/settings.json").read_bytes()).get("downloadsFolder")
        if isinstance(named, str) and named:
            chosen = Path(named).expanduser()
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    return [chosen, home / ".cache/lm-studio/models"]


def models() -> Iterator[Stored]:
    for folder in folders():
        rows = [
            (paths, whole)
            for paths, whole in joined(gguf_files(folder, 3))
            if len(paths[0].relative_to(folder).parts) == 3
        ]
        count: dict[Path, int] = {}
        for paths, _ in rows:
            count[paths[0].parent] = count.get(paths[0].parent, 0) + 1
        for paths, whole in rows:
            model = paths[0].parent
            name = model.relative_to(folder).as_posix() + (f"/{title(paths)}" if count[model] > 1 else "")
            yield Stored(f"lmstudio:{name}", "lmstudio", paths, whole)


def find(name: str) -> Stored:
    """The model "publisher/model", or "publisher/model/file.gguf" where there are several. Raises UserError."""
    known = list(models())
    exact = [
        model
        for model in known
        if model.name == f"lmstudio:{name}"
        or f"{name}".endswith(title(model.paths))
        and model.name == f"lmstudio:{name.rsplit('/', 1)[0]}"
    ]
    if exact:
        return exact[0]
    several = [model.name for model in known if model.name.startswith(f"lmstudio:{name}/")]
    if several:
        raise UserError(f"lmstudio:{name} has several files: name one, such as -m {several[0]}.")
    raise UserError(
        f"There is no model {name} in LM Studio's folder ({', '.join(map(str, folders()))}); `anytune models` lists "
        "the available ones." + did_you_mean(f"lmstudio:{name}", [model.name for model in known])
    )
