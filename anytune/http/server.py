"""Running an application: one line when it is ready, a clean end at Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from anytune.errors import UserError
from anytune.extras import install
from anytune.signals import handled

GRACE = 2  # seconds that open requests get to end


def serve(app, listener: socket.socket, ready: Callable[[], None], tls: tuple[Path, Path] | None = None) -> None:
    """Serve `app` on `listener` until asked to stop (see signals.py); ready() is called when requests are answered.

    Raises UserError without uvicorn.
    """
    try:
        import uvicorn
    except ImportError:
        raise UserError(f"This needs a web server: {install('studio')}.") from None

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                ready()

        def capture_signals(self) -> contextlib.AbstractContextManager[None]:
            # uvicorn raises the signal again after its orderly end, which would make that end look like a crash
            return handled(self.handle_exit)

    chain, key = tls or (None, None)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=65536,
        ssl_certfile=chain,
        ssl_keyfile=key,
        proxy_headers=False,
    )
    Server(config).run(sockets=[listener])
