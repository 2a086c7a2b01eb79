"""Keys, sealed boxes and masks of secure sums, by the `cryptography` package: no own ciphers."""

import hashlib
import importlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phalanx.errors import WireError

KEY_BYTES = 32
"""Length of every key, secret or public."""

SEAL_BYTES = 28
"""By how much a sealed text is longer: a nonce of 12 bytes, and a tag of 16."""

_BLOCK = 1 << 18  # bytes of a mask at a time: they stay in the cache
_ZEROS = bytes(_BLOCK)


class SecretKey:
    """Secret key of X25519, and what it shares with others' public keys.

    Args:
        secret: 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._curve = _module("hazmat.primitives.asymmetric.x25519")
        self._key = self._curve.X25519PrivateKey.from_private_bytes(secret)

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        found: bytes = self._key.public_key().public_bytes_raw()
        return found

    def agree(self, public: bytes, purpose: bytes) -> bytes:
        """The key that both parties come to, each by its own secret: X25519, then HKDF.

        Args:
            public: key of the other; of no trusted origin.
            purpose: keys of different purposes have nothing to do with each other.

        Raises:
            WireError: if the public key is none, or one with which everybody shares the same.
        """
        try:
            shared = self._key.exchange(self._curve.X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise WireError("message must hold a public key of X25519") from error
        derivation = _module("hazmat.primitives.kdf.hkdf").HKDF(
            _module("hazmat.primitives.hashes").SHA256(), KEY_BYTES, None, purpose
        )
        key: bytes = derivation.derive(shared)
        return key


def seal(key: bytes, nonce: bytes, text: bytes, purpose: bytes) -> bytes:
    """A text that only who has the key can read, or write: AES-GCM."""
    box = _module("hazmat.primitives.ciphers.aead").AESGCM(key)
    sealed: bytes = box.encrypt(nonce, text, purpose)
    return nonce + sealed


def unseal(key: bytes, sealed: bytes, purpose: bytes) -> bytes | None:
    """The text; None if it was not sealed by this key for this purpose."""
    box = _module("hazmat.primitives.ciphers.aead").AESGCM(key)
    try:
        text: bytes = box.decrypt(sealed[:12], sealed[12:], purpose)
    except _module("exceptions").InvalidTag:
        return None
    return text


def digest(*parts: bytes) -> bytes:
    """A digest of parts, each of its own length: SHA-256."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.digest()


def add_mask(total: Tensor, key: bytes, sign: int) -> None:
    """Adds a mask to words, or takes it away, in place: the key stream of AES-256 in counter mode.

    A key must mask one vector only. Cost: about a nanosecond a word of 4 bytes.

    Args:
        total: `(width,)`, int32 or int64, on the CPU.
        key: 32 bytes.
        sign: 1 or -1.
    """
    words = total.numpy()
    words = words.view(np.uint32 if words.itemsize == 4 else np.uint64)
    add = np.add if sign > 0 else np.subtract
    stream = Stream(key)
    size = _BLOCK // words.itemsize
    for start in range(0, len(words), size):
        block = words[start : start + size]
        add(block, stream.words(len(block), words.dtype), out=block)


class Stream:
    """Stream of bytes that nobody can tell from uniform ones without the key.

    Args:
        key: 32 bytes, for this stream alone.
    """

    def __init__(self, key: bytes) -> None:
        ciphers = _module("hazmat.primitives.ciphers")
        cipher = ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()
        self._view = bytearray(_BLOCK + 16)
        self._buffer = np.frombuffer(self._view, dtype=np.uint8)

    def words(self, number: int, dtype: Any) -> Any:
        """The next words, at most 256 KiB; overwritten by those that follow."""
        count = number * np.dtype(dtype).itemsize
        self._encryptor.update_into(memoryview(_ZEROS)[:count], self._view)
        return self._buffer[:count].view(np.dtype(dtype).newbyteorder("<"))


def as_bytes(row: Tensor) -> bytes:
    """The bytes of a tensor of uint8."""
    return row.contiguous().numpy().tobytes()


def as_tensor(data: bytes) -> Tensor:
    """Bytes as a tensor of uint8, in memory of its own."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@lru_cache
def _module(name: str) -> Any:
    """A module of `cryptography`, imported where it is used.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(f"cryptography.{name}")
    except ImportError as error:
        raise ImportError("secure sums need cryptography: pip install 'phalanx[secure]'") from error
