"""Addresses of this machine, and how one shows them."""

from __future__ import annotations

import ipaddress
import socket

from anytune.errors import UserError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what is bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_address() -> str:
    """The address by which others in the same network reach this machine; 127.0.0.1 where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: this only picks a route
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError if the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(256)
    except (OSError, OverflowError) as error:
        made.close()
        raise UserError(
            f"{host} port {port} cannot be used: {getattr(error, 'strerror', None) or error}; choose "
            "another with --port (0: any that is free)."
        ) from None
    made.set_inheritable(False)
    return made


def url(host: str, port: int, secure: bool) -> str:
    shown = own_address() if host in ("0.0.0.0", "::") else host
    return f"{'https' if secure else 'http'}://{f'[{shown}]' if ':' in shown else shown}:{port}"
