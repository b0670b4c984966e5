"""From options to a studio that answers."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from anytune.errors import UserError
from anytune.extras import install
from anytune.http.address import bound, url
from anytune.http.server import serve
from anytune.http.token import token_in


@dataclass(frozen=True)
class Options:
    home: str
    host: str
    port: int
    lan: bool
    tls: bool
    hosts: tuple[str, ...]
    device: str
    further: tuple[str, ...]
    browser: bool


def launch(o: Options, say: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Run a studio until it is asked to end. Raises UserError."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError(f"The studio needs more packages: {install('studio')}.") from None
    from anytune.studio.app import application
    from anytune.studio.home import Home
    from anytune.studio.state import Studio

    for folder in o.further:
        if not Path(folder).expanduser().is_dir():
            raise UserError(f"--export-to {folder}: there is no such folder.")
    home = Home(Path(o.home))
    listener = bound(o.host, o.port)
    port = listener.getsockname()[1]
    token = token_in(home.root / "token") if o.lan else None
    tls = None
    if o.tls:
        from anytune.http.certificate import certificate

        tls = certificate(home.root / "tls", o.hosts)
    app = application(
        Studio(home, o.device, [Path(folder).expanduser() for folder in o.further]),
        token=token,
        secure=o.tls,
        hosts=o.hosts,
    )
    address = url(o.host, port, o.tls)

    def ready() -> None:
        say(f"anytune studio: {address}")
        if token is not None:
            _invite(f"{address}/?token={token}", tls, say)
        if o.browser:
            own = url("127.0.0.1", port, o.tls) if o.host in ("0.0.0.0", "::") else address
            link = own + (f"/?token={token}" if token else "")
            threading.Thread(target=_open, args=(link, note), daemon=True).start()

    serve(app, listener, ready, tls)


def _invite(link: str, tls: tuple[Path, Path] | None, say: Callable[[str], None]) -> None:
    """What a phone needs: the link with the token, as a QR code, and what its browser will ask."""
    import io

    import segno

    drawn = io.StringIO()
    segno.make(link, error="m").terminal(drawn, compact=True)
    say(f"On a phone in the same network, scan this or open {link}\n{drawn.getvalue()}")
    if tls is not None:
        from anytune.http.certificate import fingerprint

        say(f"Its browser asks once whether to trust this machine's certificate; its SHA-256 is\n{fingerprint(tls[0])}")
    else:
        say("To upload from a phone, or to install the page on it, also use --tls.")


def _open(link: str, note: Callable[[str], None]) -> None:
    if not webbrowser.open(link):
        note("no browser could be opened: open the address above")
