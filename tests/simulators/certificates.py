"""Authorities, and certificates of theirs, valid or not, for brokers and boards of tests."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Made:
    """A certificate and its key, on disk as `<name>.crt` and `<name>.key`."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def certificate(
    folder: Path,
    name: str,
    issuer: Made | None,
    *,
    address: str = "127.0.0.1",
    starts: dt.timedelta = -HOUR,
    ends: dt.timedelta = HOUR,
) -> Made:
    """Make one for `address`, valid from now + `starts` to now + `ends`; without an issuer, an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
    )
    made = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    plain = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(plain)
    (folder / f"{name}.key").chmod(0o600)
    return Made(made, key)


def listener_lines(folder: Path, name: str, *, ca: str = "authority") -> str:
    """What a mosquitto listener needs to speak TLS with that certificate."""
    return f"cafile {folder}/{ca}.crt\ncertfile {folder}/{name}.crt\nkeyfile {folder}/{name}.key\n"
