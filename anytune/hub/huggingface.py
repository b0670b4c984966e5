"""Hugging Face's cache (models--owner--name/refs, snapshots, blobs), which llama.cpp fills too, and its repositories.

Downloads go through the huggingface_hub library, so that the cache, tokens, mirrors and proxies are the user's own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anytune.errors import UserError, did_you_mean
from anytune.hub.download import Tell
from anytune.hub.stored import PART, Stored, beside, gguf_files, joined, title

NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:[:/](?P<file>[\w./+ ()-]+))?")
TYPES = ("Q4_K_M", "Q8_0")  # what is taken of a repository if nothing is asked for, the first that is there
HASH = re.compile(r"[0-9a-f]{64}")


def folders() -> list[Path]:
    """The hub's cache, and where llama.cpp keeps its own if LLAMA_CACHE says so."""
    environment = os.environ.get
    hub = next(
        (
            Path(folder)
            for folder in (
                environment("HF_HUB_CACHE"),
                environment("HUGGINGFACE_HUB_CACHE"),
                environment("HF_HOME") and Path(environment("HF_HOME", ""), "hub"),
                environment("XDG_CACHE_HOME") and Path(environment("XDG_CACHE_HOME", ""), "huggingface/hub"),
            )
            if folder
        ),
        Path.home() / ".cache/huggingface/hub",
    )
    own = environment("LLAMA_CACHE")
    return [folder.expanduser() for folder in ([Path(own)] if own else []) + [hub]]


def models() -> Iterator[Stored]:
    """GGUF files of every repository's newest snapshot."""
    for folder in folders():
        for repository in _listing(folder, "models--*--*"):
            repo = "/".join(repository.name.split("--", 2)[1:])
            for snapshot in _snapshots(repository):
                for paths, whole in joined(gguf_files(snapshot)):
                    place = paths[0].relative_to(snapshot).with_name(title(paths)).as_posix()
                    yield Stored(f"hf:{repo}:{place}", "huggingface", paths, whole)


def llama_cpp() -> Iterator[Stored]:
    """What llama.cpp keeps in one flat folder, as its older versions do; named by their paths."""
    own = os.environ.get("LLAMA_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    for folder in [Path(own).expanduser()] if own else [Path(caches, "llama.cpp")]:
        for paths, whole in joined(gguf_files(folder, 0)):
            yield Stored(str(paths[0]), "llama.cpp", paths, whole)


def _snapshots(repository: Path) -> list[Path]:
    """The snapshot that refs/main names first, then the others, the newest first."""
    with contextlib.suppress(OSError):
        found = sorted(_listing(repository / "snapshots", "*"), key=lambda path: -path.stat().st_mtime)
        main = repository / "refs/main"
        named = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
        return sorted(found, key=lambda path: path.name != named)
    return []


def _listing(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def parse(name: str) -> tuple[str, str | None]:
    """ "owner/repo[:file or type]" (a slash before a file will do) -> (owner/repo, file or type). Raises UserError."""
    match = NAME.fullmatch(name)
    if match is None or ".." in name or "" in name.split("/"):
        raise UserError(f"'hf:{name}' is not of the form hf:OWNER/REPO:FILE.gguf or hf:OWNER/REPO:TYPE.")
    return match["repo"], match["file"]


def find(name: str) -> Stored | None:
    """The model of "owner/repo[:file or type]" if it is in a cache."""
    repo, wanted = parse(name)
    mine = [model for model in models() if model.name.startswith(f"hf:{repo}:")]
    files = {model.name.split(":", 2)[2]: model for model in reversed(mine)}  # the first one of a name stays
    chosen = choose(list(files), wanted)
    return files[chosen] if chosen else None


def choose(files: list[str], wanted: str | None) -> str | None:
    """Which of a repository's files is meant by a file's name, a type such as Q4_K_M, or nothing; None: none is."""
    files = [file for file in files if file.lower().endswith(".gguf") and not beside(file)]
    if wanted is None:
        if len(files) == 1:
            return files[0]
        return next((found for kind in TYPES if (found := choose(files, kind))), None)
    if wanted in files:
        return wanted
    sign = re.compile(rf"(^|[-._/]){re.escape(wanted)}([-./]|$)", re.IGNORECASE)
    found = sorted((file for file in files if sign.search(file.removesuffix(".gguf"))), key=lambda f: (len(f), f))
    return found[0] if found else None


def fetch(name: str, tell: Tell | None = None) -> Path:
    """Download "owner/repo[:file or type]" into the hub's cache unless it is there. Raises UserError, OSError."""
    repo, wanted = parse(name)
    if (stored := find(name)) is not None and len(stored.paths) == 1:
        return stored.path
    api = library().HfApi()
    with sentences(repo):
        file = wanted if wanted and wanted.lower().endswith(".gguf") else None
        if file is None:
            listed = api.list_repo_files(repo)
            file = choose(listed, wanted)
            if file is None:
                raise UserError(
                    f"hf:{repo} has no GGUF file "
                    + (f"of type {wanted}" if wanted else "that is clearly meant: name a file or a type")
                    + f"; see https://huggingface.co/{repo}/tree/main."
                    + did_you_mean(wanted or repo.split("/")[1], [name for name in listed if name.endswith(".gguf")])
                )
        refuse_part(file)
        path = Path(api.hf_hub_download(repo, file, **({} if tell is None else {"tqdm_class": _bar(tell)})))
    return _checked(path, repo)


def _bar(tell: Tell) -> type:
    """The library's progress bar, which tells instead of drawing."""

    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"file": open(os.devnull, "w"), "mininterval": 0.5})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            tell(int(self.n), int(self.total) if self.total else None)
            return shown

    return Bar


def library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("Hugging Face models need its library: pip install huggingface_hub.") from None
    return huggingface_hub


def refuse_part(name: str) -> None:
    """UserError for one part of a model, before anything is fetched."""
    match = PART.fullmatch(Path(name).name)
    if match and int(match[3]) > 1:
        raise UserError(
            f"{Path(name).name} is one of {int(match[3])} parts, which anytune does not read: use a smaller type in "
            "one file, or fetch all and join them with llama-gguf-split --merge."
        )


@contextlib.contextmanager
def sentences(repo: str, kind: str = "") -> Iterator[None]:
    """The library's errors as sentences. kind: the prefix of a repository's name in its address."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"hf:{repo} needs permission: accept its terms on https://huggingface.co/{kind}{repo} and log in "
            "with `hf auth login`, or set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"hf:{repo} is not on Hugging Face, or is private: check the spelling, or log in with `hf auth login`."
        ) from None
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise UserError(f"hf:{repo} cannot be reached: check the network, the proxy and HF_HUB_OFFLINE.") from None
        raise UserError(f"hf:{repo} has no such file: see https://huggingface.co/{kind}{repo}/tree/main.") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise UserError(f"hf:{repo}: the server answers {status}; try again later.") from None
    except Exception as error:
        # of httpx, httpx2 or requests, as the library's version has it
        foreign = type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3", "hf_xet"))
        if not foreign and not isinstance(error, (ConnectionError, TimeoutError, errors.OfflineModeIsEnabled)):
            raise
        raise UserError(
            f"hf:{repo} cannot be reached ({str(error)[:200] or type(error).__name__}); check the network and try "
            "again: a partial download is continued."
        ) from None


def _checked(path: Path, repo: str) -> Path:
    """The file, if it has the hash by which the cache names it, and is a sound GGUF."""
    import hashlib

    from anytune.gguf import GGUF

    blob = path.resolve()
    if HASH.fullmatch(blob.name):
        with blob.open("rb", buffering=0) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != blob.name:
            blob.unlink()
            raise UserError(f"hf:{repo} has the SHA-256 {found} instead of {blob.name}; it was not kept: try again.")
    try:
        GGUF.open(path).close()
    except UserError as error:
        raise UserError(f"hf:{repo} is not a usable model: {error}") from None
    return path
