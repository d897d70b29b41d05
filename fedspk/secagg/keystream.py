"""The AES-256-CTR keystream: every pseudorandom number of a secure sum comes from here."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CHUNK_BYTES = 128 * 1024
"""How much is best drawn at a time: it stays in a core's cache while it is used."""

_KEY_BYTES, _BLOCK_BYTES = 32, 16
_ZEROS = memoryview(bytes(CHUNK_BYTES))


class Keystream:
    """AES-256 in counter mode (NIST SP 800-38A, section 6.5) over zeros, from any byte onwards.

    The first counter block is zero, so a key must be used for one stream only.

    >>> import numpy as np
    >>> out = np.empty(2, np.uint32)
    >>> Keystream(bytes(32)).fill(out)
    >>> out.tobytes().hex()
    'dc95c078a2408989'

    Raises:
        ValueError: the key is not 32 bytes.
    """

    def __init__(self, key: bytes, first_byte: int = 0) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError("a keystream needs a key of 32 bytes")
        block, skipped = divmod(first_byte, _BLOCK_BYTES)
        counter = block.to_bytes(_BLOCK_BYTES, "big")
        self._update_into = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update_into
        self.fill_chunk(memoryview(bytearray(skipped)))

    def fill(self, out: npt.NDArray[Any]) -> None:
        """Overwrite a contiguous array of any type with the next bytes of the stream."""
        buffer = out.reshape(-1).data.cast("B")
        for start in range(0, len(buffer), CHUNK_BYTES):
            self.fill_chunk(buffer[start : start + CHUNK_BYTES])

    def fill_chunk(self, buffer: memoryview) -> None:
        """Overwrite at most `CHUNK_BYTES` bytes with the next ones of the stream."""
        self._update_into(_ZEROS[: len(buffer)], buffer)
