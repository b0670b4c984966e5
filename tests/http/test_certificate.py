"""A certificate of the machine's own: a client that trusts it alone accepts the server, by address and by name."""

import http.server
import ssl
import stat
import threading
import urllib.request

import pytest

from anytune.http import certificate as module
from anytune.http.certificate import certificate, fingerprint
from tests.support.require import need


@pytest.fixture(autouse=True)
def cryptography():
    need("cryptography")


def test_a_client_that_trusts_it_is_served(tmp_path):
    chain, key = certificate(tmp_path)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(fingerprint(chain)) == 95
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        trusting = ssl.create_default_context(cafile=chain)
        for name in ("127.0.0.1", "localhost"):
            with urllib.request.urlopen(f"https://{name}:{server.server_port}/", context=trusting) as answer:
                assert answer.status == 200
    finally:
        server.shutdown()
        server.server_close()


def test_it_stays_until_its_names_change_or_it_expires(tmp_path, monkeypatch):
    chain, key = certificate(tmp_path)
    first = chain.read_bytes()
    assert certificate(tmp_path) and chain.read_bytes() == first
    certificate(tmp_path, ("studio.example",))
    second = chain.read_bytes()
    assert second != first
    monkeypatch.setattr(module, "LEFT", 1000)
    certificate(tmp_path, ("studio.example",))
    assert chain.read_bytes() != second
    monkeypatch.undo()
    chain.write_text("damaged")
    certificate(tmp_path)
    assert b"BEGIN CERTIFICATE" in chain.read_bytes()
