"""Random generators that are a pure function of where they are used.

Philox is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): key and
counter name a stream, nothing has to be advanced, saved or restored, and any worker can redraw it.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is drawn for; streams of different purposes never overlap."""

    TRAIN = 0
    INIT = 1
    SHUFFLE = 2
    MAP = 3
    EVALUATE = 4


class Streams:
    """The generators of one microbatch of one step; `generator(i)` is the i-th independent one.

    Each holds 2**128 draws before it would meet the next (step, microbatch).
    """

    __slots__ = ("_counter", "_key", "_seed", "share")

    def __init__(
        self,
        seed: int,
        step: int = 0,
        microbatch: int = 0,
        purpose: Purpose = Purpose.TRAIN,
        share: float = 1.0,
    ) -> None:
        self._seed = seed
        self._key = int(purpose) << 32
        self._counter = (0, 0, microbatch, step)
        self.share = share
        """The microbatch's part of the batch's samples."""

    def generator(self, stream: int = 0) -> np.random.Generator:
        """A fresh generator at the start of the stream; the same arguments give the same draws."""
        key = np.array([self._seed, self._key | stream], dtype=np.uint64)
        return np.random.Generator(
            np.random.Philox(key=key, counter=np.array(self._counter, dtype=np.uint64))
        )
