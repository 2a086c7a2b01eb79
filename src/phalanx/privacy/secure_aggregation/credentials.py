"""Certificates from files, as gRPC wants them."""

from pathlib import Path
from typing import Any

from phalanx.privacy.secure_aggregation.transport import import_grpc


def server_credentials(certificate: Path | None, private_key: Path | None) -> Any:
    """What a server shows to those who connect; None without files: not encrypted.

    Raises:
        ValueError: if only one of the two files is given.
    """
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise ValueError("certificate and private_key must be given together")
    pair = (private_key.read_bytes(), certificate.read_bytes())
    return import_grpc().ssl_server_credentials([pair])


def channel_credentials(authority: Path | None) -> Any:
    """How a server's certificate is checked: by who signed it; None without a file."""
    if authority is None:
        return None
    return import_grpc().ssl_channel_credentials(authority.read_bytes())
