"""A certificate of the machine's own, for phones, which upload and install only over HTTPS.

Phones have to be told once to trust it. The key never leaves its file (mode 600).
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from pathlib import Path

from anytune.errors import UserError
from anytune.extras import install
from anytune.files import atomic_write
from anytune.http.address import own_address

DAYS = 397  # more is refused by Apple's systems
LEFT = 7  # days before its end it is renewed


def certificate(folder: Path, hosts: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """(certificate, key) in `folder`, renewed when they are missing, expire, or the machine's address has changed.

    Raises UserError without the cryptography package, or where the folder cannot be written.
    """
    try:
        from cryptography import x509
    except ImportError:
        raise UserError(f"--tls needs the cryptography package: {install('studio')}.") from None
    chain, key = folder / "certificate.pem", folder / "key.pem"
    names = _names(hosts)
    if chain.is_file() and key.is_file() and _serves(x509, chain, names):
        return chain, key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make(chain, key, names)
    except OSError as error:
        raise UserError(f"The certificate cannot be kept in {folder}: {error.strerror or error}.") from None
    return chain, key


def fingerprint(chain: Path) -> str:
    """SHA-256 of the certificate, as phones show it."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    return x509.load_pem_x509_certificate(chain.read_bytes()).fingerprint(SHA256()).hex(":").upper()


def _names(hosts: tuple[str, ...]) -> list[str]:
    name = socket.gethostname().lower()
    return sorted({"localhost", "127.0.0.1", "::1", name, f"{name}.local", own_address(), *hosts})


def _serves(x509, chain: Path, names: list[str]) -> bool:
    """Whether the certificate is of today and of all these names."""
    try:
        found = x509.load_pem_x509_certificate(chain.read_bytes())
        held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, OSError, x509.ExtensionNotFound):
        return False
    has = {*held.get_values_for_type(x509.DNSName), *map(str, held.get_values_for_type(x509.IPAddress))}
    now = datetime.datetime.now(datetime.UTC)
    last = found.not_valid_after_utc - datetime.timedelta(LEFT)
    return set(names) <= has and found.not_valid_before_utc <= now < last


def _make(chain: Path, key: Path, names: list[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"anytune on {socket.gethostname()}"[:64])])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([_name(x509, name) for name in names]), critical=False)
        # an authority of its own, as phones only take such a one into their store; it can vouch for nothing else
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key.unlink(missing_ok=True)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    with atomic_write(chain) as file:
        file.write(made.public_bytes(serialization.Encoding.PEM))


def _name(x509, name: str):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
