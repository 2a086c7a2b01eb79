"""Certificates and keys of a federation: TLS of the SuperLink, and a key for each node."""

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from phalanx.federated.flower.records import import_flower

AUTHORITY, SERVER, SERVER_KEY = "authority.pem", "server.pem", "server.key"


def write_certificates(
    folder: Path, num_nodes: int, hosts: Sequence[str] = ("localhost", "127.0.0.1"), days: int = 90
) -> None:
    """Writes what is not there yet: an authority, a server certificate that it signs, node keys.

    The authority's own key is never written, so that it signs nothing else. Keys are elliptic
    (P-384), and readable by their owner alone; `node-0` has its public half in `node-0.pub`.

    Args:
        folder: where to.
        num_nodes: how many nodes get a key.
        hosts: names and addresses under which the server is reached.
        days: that the certificates are valid.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / SERVER).exists():
        _write_server(folder, hosts, days)
    crypto = _Crypto()
    for node in range(num_nodes):
        if not (folder / f"node-{node}.pub").exists():
            key = crypto.key()
            _write(folder / f"node-{node}", crypto.private(key, "OpenSSH"))
            _write(folder / f"node-{node}.pub", crypto.public(key) + b"\n")


def _write_server(folder: Path, hosts: Sequence[str], days: int) -> None:
    crypto = _Crypto()
    authority, server = crypto.key(), crypto.key()
    root = crypto.certificate("Phalanx federation", authority, authority, days)
    leaf = crypto.certificate(hosts[0], server, authority, days, root, hosts)
    _write(folder / AUTHORITY, crypto.pem(root))
    _write(folder / SERVER_KEY, crypto.private(server, "PKCS8"))
    _write(folder / SERVER, crypto.pem(leaf))


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


class _Crypto:
    """The package `cryptography`, which Flower brings."""

    def __init__(self) -> None:
        self._x509 = import_flower("cryptography.x509")
        self._hashes = import_flower("cryptography.hazmat.primitives.hashes")
        self._forms = import_flower("cryptography.hazmat.primitives.serialization")
        self._curves = import_flower("cryptography.hazmat.primitives.asymmetric.ec")

    def key(self) -> Any:
        return self._curves.generate_private_key(self._curves.SECP384R1())

    def private(self, key: Any, form: str) -> bytes:
        forms = self._forms
        made: bytes = key.private_bytes(
            forms.Encoding.PEM, getattr(forms.PrivateFormat, form), forms.NoEncryption()
        )
        return made

    def public(self, key: Any) -> bytes:
        forms = self._forms
        made: bytes = key.public_key().public_bytes(
            forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH
        )
        return made

    def pem(self, certificate: Any) -> bytes:
        made: bytes = certificate.public_bytes(self._forms.Encoding.PEM)
        return made

    def certificate(
        self,
        name: str,
        key: Any,
        signer: Any,
        days: int,
        issuer: Any = None,
        hosts: Sequence[str] = (),
    ) -> Any:
        """An authority's own, or one that it signs for hosts."""
        x509, now = self._x509, datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
            )
        )
        if hosts:
            names = [self._host(one) for one in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        else:
            usage = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            signs = x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True)
            builder = builder.add_extension(signs, True)
        return builder.sign(signer, self._hashes.SHA384())

    def _host(self, name: str) -> Any:
        try:
            return self._x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            return self._x509.DNSName(name)
