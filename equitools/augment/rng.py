"""Random numbers that depend on a key and on nothing else: not on workers, batches or devices.

A row of uniforms is a Philox stream (Salmon et al., 2011) whose key is the BLAKE2b digest of the
parts given (seed, epoch, sample key); view v reads the v-th row, so views added later change none.
"""

import hashlib

import numpy as np

# Uniforms of a view. Every operation reads its own `COLUMNS` of the row; those of a new operation
# start where the others end, so that recipes without it keep their draws.
WIDTH = 64


def uniforms(*parts: object, rows: int = 1) -> np.ndarray:
    """Uniforms in [0, 1), rows × WIDTH float64, keyed by the parts (read as text)."""
    text = "\0".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    stream = np.random.Philox(key=np.frombuffer(digest, dtype="<u8"))
    return np.random.Generator(stream).random((rows, WIDTH))
