"""Public data by name: hf:owner/dataset[:split or file], through huggingface_hub into its own cache.

JSON lines are read as they are; Parquet, which most data sets are, becomes JSON lines once, through pyarrow.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from anytune.errors import UserError
from anytune.files import atomic_write
from anytune.hub.cache import home
from anytune.hub.huggingface import NAME, library, sentences

SPLIT = "train"
TEXT = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz", ".txt")
PARQUET = (".parquet",)
MARK = "hf:"


def fetch(name: str) -> list[Path]:
    """The files of "hf:owner/dataset[:split or file]" on this machine, fetched if they are not there.

    Of a repository the files of the split (train, if none is named) are taken: JSON where there is any, else Parquet.
    Raises UserError.
    """
    match = NAME.fullmatch(name.removeprefix(MARK))
    if match is None or ".." in name:
        raise UserError(
            f"{name!r} is not of the form hf:OWNER/DATASET, hf:OWNER/DATASET:SPLIT or hf:OWNER/DATASET:FILE."
        )
    repo, wanted = match["repo"], match["file"]
    api = library().HfApi()
    with sentences(repo, "datasets/"):
        if wanted and wanted.lower().endswith((*TEXT, *PARQUET)):
            chosen = [wanted]
        else:
            chosen = choose(api.list_repo_files(repo, repo_type="dataset"), wanted, repo)
        found = [Path(api.hf_hub_download(repo, file, repo_type="dataset")) for file in chosen]
    return [_as_lines(path, repo) if path.name.lower().endswith(PARQUET) else path for path in found]


def choose(files: Iterable[str], split: str | None, repo: str) -> list[str]:
    """Which files of a repository make a split. Raises UserError, naming what there is."""
    files = sorted(files)
    sign = re.compile(rf"(^|[-._/]){re.escape(split or SPLIT)}([-._/]|$)", re.IGNORECASE)
    for kinds in (TEXT, PARQUET):
        mine = [file for file in files if file.lower().endswith(kinds) and not Path(file).name.lower() == "readme.txt"]
        if found := [file for file in mine if sign.search(file)]:
            folders = {Path(file).parent for file in found}
            if len(folders) > 1:  # configurations of one data set
                raise UserError(
                    f"hf:{repo} has several sets of that name: name a file, such as {found[0]} or {found[-1]}."
                )
            return found
    known = [file for file in files if file.lower().endswith((*TEXT, *PARQUET))]
    if len(known) == 1 and split is None:
        return known
    there = f"it has {', '.join(known[:8])}" if known else "it has neither JSON lines nor Parquet"
    raise UserError(f"hf:{repo} has no split {split or SPLIT}; {there}: name a split or a file after a colon.")


def _as_lines(path: Path, repo: str) -> Path:
    """The rows of a Parquet file as JSON lines, beside anytune's other downloads; made once for a content."""
    made = home() / "datasets" / f"{repo.replace('/', '--')}-{path.resolve().name[:40]}.jsonl"
    if made.is_file():
        return made
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"hf:{repo} is stored as Parquet, which needs pyarrow: pip install pyarrow.") from None
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(made, "w") as file:
            for batch in parquet.ParquetFile(path).iter_batches(1024):
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise UserError(f"hf:{repo} did not give a readable Parquet file: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise UserError(f"{os.fspath(made)} cannot be written: {error.strerror or error}; set ANYTUNE_HOME.") from None
    return made
