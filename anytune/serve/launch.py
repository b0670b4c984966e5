"""From options to a server that answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.extras import install
from anytune.http.address import bound, is_loopback, url
from anytune.http.server import serve
from anytune.http.token import token_in

if TYPE_CHECKING:
    from anytune.serve.backend import Backend

KEY = "ANYTUNE_API_KEY"


@dataclass(frozen=True)
class Options:
    """adapters, runs: (name, path). backend: "auto", "llama.cpp" or "anytune". folders: where adapters may be loaded
    from by request. key: what clients send as API key, None: made where others can reach the server."""

    model: Path
    adapters: tuple[tuple[str, Path], ...] = ()
    runs: tuple[tuple[str, Path], ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    tls: bool = False
    hosts: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    key: str | None = None
    backend: str = "auto"
    parallel: int = 4
    context: int | None = None
    template: str | Path | None = None
    home: Path = Path("~/anytune")


def launch(
    o: Options, load: Callable[[], Any], threads: int | None, say: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Serve until asked to end. load() -> Model, on the engine that was asked for. Raises UserError."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError(f"The server needs more packages: {install('serve')}.") from None
    from anytune.serve.app import Access, application

    listener = bound(o.host, o.port)
    port, home = listener.getsockname()[1], o.home.expanduser()
    outside = not is_loopback(o.host)
    key = o.key or (token_in(home / "serve-token") if outside else None)
    tls = None
    if o.tls:
        from anytune.http.certificate import certificate

        tls = certificate(home / "tls", o.hosts)
    service, scheduler = build(o, load, threads, note)
    # who reaches the server from outside loads adapters from named folders only
    access = Access(key, o.hosts, o.tls, o.folders if outside or o.folders else None)
    address = url(o.host, port, o.tls)

    def ready() -> None:
        say(f"anytune serve: {address}/v1 ({service.catalog.name}, {scheduler.backend.name})")
        if outside and not o.key:
            note(f"clients need the API key in {home / 'serve-token'}, or give your own in {KEY}")

    try:
        serve(application(service, access), listener, ready, tls)
    finally:
        scheduler.close()


def build(o: Options, load: Callable[[], Any], threads: int | None, note: Callable[[str], None]) -> tuple[Any, Any]:
    """(service, scheduler) of these options. Raises UserError."""
    from anytune.serve.checkpoints import Run
    from anytune.serve.scheduler import Scheduler
    from anytune.serve.served import Catalog
    from anytune.serve.service import Service
    from anytune.text import ChatTemplate

    gguf, tokenizer, vocabulary, backend = _backend(o, load, threads, note)
    scheduler = Scheduler(backend, tokenizer)
    try:
        catalog = Catalog(o.model.stem, gguf, scheduler, [Run(name, folder) for name, folder in o.runs])
        template = ChatTemplate.for_model(gguf, tokenizer, o.template)
        if template.notice:
            note(template.notice)
        for name, path in o.adapters:
            if (remark := catalog.load(name, path).remark) is not None:
                note(f"{name}: {remark}")
        return Service(gguf, tokenizer, scheduler, catalog, vocabulary, template), scheduler
    except BaseException:
        scheduler.close()
        raise


def _backend(
    o: Options, load: Callable[[], Any], threads: int | None, note: Callable[[str], None]
) -> tuple[Any, Any, int, Backend]:
    """(open file, tokenizer, size of the vocabulary, backend)."""
    from anytune.gguf import GGUF
    from anytune.llamacpp.judge import available
    from anytune.text import Tokenizer

    if o.backend == "llama.cpp" and not available():
        raise UserError(f"--backend llama.cpp needs the package xllamacpp: {install('serve')}.")
    if o.backend == "llama.cpp" or o.backend == "auto" and available():
        from anytune.serve.llama import LlamaBackend

        gguf = GGUF.open(o.model)
        tokenizer, vocabulary = Tokenizer.from_gguf(gguf), _vocabulary(gguf)
        context = _context(gguf, o.context)
        return (
            gguf,
            tokenizer,
            vocabulary,
            LlamaBackend(o.model, vocabulary, o.parallel, context, threads or os.cpu_count() or 1),
        )
    from anytune.serve.engines import EngineBackend

    if o.backend == "auto":
        note("llama.cpp is not installed (pip install xllamacpp): using anytune's own engines")
    model = load()
    backend = EngineBackend(model, o.parallel, _context(model.gguf, o.context))
    return model.gguf, model.tokenizer, model.config.vocabulary, backend


def _context(gguf: Any, asked: int | None) -> int:
    """Tokens of one sequence: as many as the model was made for, at most 4096 unless more are asked for."""
    own = gguf.metadata.get(f"{gguf.metadata['general.architecture']}.context_length", 4096)
    if asked is not None and asked > own:
        raise UserError(f"-c {asked}: this model was made for {own} tokens.")
    return asked or max(1, min(int(own), 4096))


def _vocabulary(gguf: Any) -> int:
    """Rows of the embedding table, which is how many logits there are."""
    table = gguf.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise UserError(f"{gguf.path.name} has no embedding table: it is not a language model.")
    return int(table.shape[0])
