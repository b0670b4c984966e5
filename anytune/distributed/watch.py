"""A ring of connections: each process of a process group holds one to the next, and notices at once when that one ends.

The collectives of torch.distributed notice too, but a process that waits inside a device's driver does not: then this
ends it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable

IN_ORDER = b"1"  # what a process says before it closes its connection in good order
ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))  # a machine without power: gone in a minute


class Watch:
    """Calls gone(rank of the next process), in a thread of its own, when that ends without a good-bye."""

    def __init__(self, rank: int, size: int, store, timeout: float, gone: Callable[[int], None]):
        """store: where all processes meet, with set() and get() of bytes. Raises OSError or RuntimeError."""
        self.after, self.gone, self.over = (rank + 1) % size, gone, False
        name, address = _address()
        with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
            server.settimeout(timeout)
            store.set(f"watch-{rank}", f"{server.getsockname()[1]} {name}")
            port, host = store.get(f"watch-{self.after}").decode().split(" ", 1)
            self.next = socket.create_connection((host, int(port)), timeout)
            self.previous = server.accept()[0]
        for end in (self.next, self.previous):
            end.settimeout(None)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ALIVE:
                if hasattr(socket, option):
                    end.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.thread = threading.Thread(target=self._listen, daemon=True, name="anytune-watch")
        self.thread.start()

    def good_bye(self) -> None:
        """The process before this one need not mind its end."""
        with contextlib.suppress(OSError):
            self.previous.sendall(IN_ORDER)

    def close(self) -> None:
        self.over = True
        with contextlib.suppress(OSError):
            self.next.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.next.close()
        self.previous.close()

    def _listen(self) -> None:
        try:
            heard = self.next.recv(1)
        except OSError:
            heard = b""
        if heard != IN_ORDER and not self.over:
            self.gone(self.after)


def _address() -> tuple[str, str]:
    """(what other machines call this one, where to listen): its address on the way to the first process's machine."""
    master = os.environ["MASTER_ADDR"]
    family, kind, _, _, place = socket.getaddrinfo(master, int(os.environ["MASTER_PORT"]), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as way:
        way.connect(place)  # of a datagram socket: nothing is sent
        own = way.getsockname()[0]
    if own.startswith("127.") or own == "::1":  # the first machine itself, which others know by that name
        return master, "" if family == socket.AF_INET else "::"
    return own, own
