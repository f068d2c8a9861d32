"""The text: the King James Bible as Debian carries it, cut into rows of characters by position.

No randomness: rows lie one after the other and share no character. Of each `BLOCK` x `CYCLE` rows
the last two blocks are validation and hidden test, so that both have a share of most books. SHA-256
sums pin the outcome, as those of the images do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ml_trainer_env.server.data.canon import SPLITS, NotCanonicalError

ROW = 65  # characters: 64 to read, and what follows each of them
BLOCK = 64  # rows in a row of one split
CYCLE = 20  # blocks, of which the last but one is validation and the last one hidden test
ALPHABET = "\n !'(),-.:;?ABCDEFGHIJKLMNOPQRSTUVWYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class TextCanon:
    """The definition of a text's splits."""

    rows: tuple[int, int, int]  # in train, val, test
    sha256: tuple[str, str, str]  # of the rows' bytes

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.rows

    @property
    def shape(self) -> str:
        return f"{ROW} characters"

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(f"{split}_rows" for split in SPLITS)

    def cut(self, raw: str) -> dict[str, np.ndarray]:
        """The splits: uint8 (n, `ROW`), positions in `ALPHABET`.

        Raises NotCanonicalError for a character that is not in it.
        """
        if unknown := set(raw) - set(ALPHABET):
            raise NotCanonicalError(f"the text has the characters {sorted(unknown)[:5]}")
        places = np.zeros(128, np.uint8)
        places[[ord(c) for c in ALPHABET]] = np.arange(len(ALPHABET))
        count = len(raw) // ROW
        rows = places[np.frombuffer(raw.encode("ascii"), np.uint8)[: count * ROW]]
        block = np.arange(count) // BLOCK % CYCLE
        chosen = (block < CYCLE - 2, block == CYCLE - 2, block == CYCLE - 1)
        return {
            key: rows.reshape(count, ROW)[where]
            for key, where in zip(self.keys, chosen, strict=True)
        }

    def verify(self, arrays: dict[str, np.ndarray]) -> None:
        """Raise NotCanonicalError unless the arrays are the splits, byte for byte."""
        for key, count, expected in zip(self.keys, self.rows, self.sha256, strict=True):
            rows = arrays.get(key)
            if rows is None or rows.shape != (count, ROW) or rows.dtype != np.uint8:
                raise NotCanonicalError(f"{key} are not {count} x {ROW} bytes")
            found = hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()
            if found != expected:
                raise NotCanonicalError(
                    f"{key} have SHA-256 {found[:12]}..., not {expected[:12]}..."
                )


TEXTS: dict[str, TextCanon] = {
    "kjv": TextCanon(
        rows=(57_387, 3_136, 3_136),
        sha256=(
            "149bea62f951f7e2948d32f1032a74edfc0254320c60d25edde0b4ce441bc1d3",
            "dbb697d62ab4b520b8948c9bf328a732b04f2e568439543574c2fc21ae8c9372",
            "ba658519d7dabc51df64192b33ac79b0d1741b07e76c00c2bf11544165776703",
        ),
    ),
}
