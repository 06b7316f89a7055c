"""Results that are not finite: which microbatches gave them, and whether two workers agree on them.

A step whose loss or gradient is not finite is not committed before each microbatch that is to blame was
computed once more, by another worker if there is one. The same bits mean that training diverges; other bits
mean that one of the two workers cannot be trusted.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from blake3 import blake3

from workers.messages import Diverged
from workers.schedule import tree_depth, tree_sum

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from workers.engine import Flat
    from workers.state import Arena

MAX_OPINIONS = 3
"""Results for one microbatch, no two of which agree, after which there is nothing left to be trusted."""

_BLOCK = 1 << 15

Sum: TypeAlias = "tuple[Sequence[Flat], int, int, Sequence[int] | None]"
"""What is added up along the tree: the elements [start, stop) of arrays, of these levels or all leaves."""


def all_finite(values: Flat) -> bool:
    """Whether every element is finite."""
    # One pass in the cache; only finite elements can give a finite sum of squares.
    with np.errstate(over="ignore", invalid="ignore"):
        if isfinite(np.dot(values, values)):
            return True
    return bool(np.isfinite(values).all())


class Suspicion:
    """What of the step under way has to be computed again before it may be committed."""

    def __init__(self) -> None:
        self.enabled = True
        self.suspects: list[int] = []
        """Microbatches whose results are not finite, not judged yet."""
        self.share = 0.0
        """Of the microbatches, that are computed twice although nothing is wrong with them."""
        self._drawn: set[int] | None = None  # those of the step; None: not drawn yet
        self._heard: list[tuple[bytes, int]] = []  # digest of each result of the first suspect, and its maker
        self._spoilt: set[int] = set()  # sums of the phase that were not finite
        self._opinions = 0

    def begin(self) -> None:
        """Another step."""
        self.suspects = []
        self._drawn = None
        self._heard = []
        self._spoilt.clear()
        self._opinions = 0

    def heard(self, item: int, *, finite: bool) -> None:
        """Slots are added up, for an update or as a part of the tree, and the sum is finite or not."""
        if not finite and self.enabled:
            self._spoilt.add(item)

    @property
    def sums_are_good(self) -> bool:
        """No sum of the phase is not finite."""
        return not self._spoilt

    def of_loss(self, arena: Arena, slots: Mapping[int, int]) -> bool:
        """Whether there are microbatches, held in these slots, whose loss is not finite."""
        if not self.enabled:
            return False
        loss = {item: float(arena.sums[slot][0, 0]) for item, slot in slots.items()}
        if not isfinite(sum(loss.values())):
            self.suspects = sorted(item for item in loss if not isfinite(loss[item]))
        return bool(self.suspects)

    def draw(self, step: int, items: Iterable[int]) -> bool:
        """Whether microbatches of a step are to be computed twice; they are drawn once, by a digest."""
        if not self.share or self._drawn is not None:
            return False
        limit = int(self.share * (1 << 64))
        self._drawn = {
            i for i in items if int.from_bytes(blake3(f"{step} {i}".encode()).digest(8), "big") < limit
        }
        self.suspects = sorted(self._drawn)
        return bool(self.suspects)

    @property
    def is_sample(self) -> bool:
        """Whether the first suspect was only drawn."""
        return self._drawn is not None and self.suspects[0] in self._drawn

    @property
    def makers(self) -> list[int]:
        """The workers whose results of the first suspect were heard."""
        return [maker for _, maker in self._heard]

    def hear(self, arena: Arena, slot: int, maker: int) -> list[int] | None:
        """A worker's result of a microbatch that was drawn: whose results differ from one that two agree on.

        None if there are no two yet.
        """
        digest = blake3(_of(arena, slot).view(np.uint8)).update(arena.sums[slot].tobytes()).digest()  # type: ignore[arg-type]
        agreed = any(each == digest for each, _ in self._heard)
        self._heard.append((digest, maker))
        self._opinions = len(self._heard)
        return [whose for each, whose in self._heard if each != digest] if agreed else None

    def of_gradient(self, arena: Arena, slots: Mapping[int, int]) -> bool:
        """Whether there are microbatches that are not finite, now that their sum was found so."""
        self.suspects = [i for i, slot in sorted(slots.items()) if not self.is_finite(arena, slot)]
        return bool(self.suspects)

    def is_faulty(self, sums: Sequence[Sum]) -> set[int]:
        """The sums found not finite although they are, of all of the phase: who added them up did wrong."""
        self._opinions += 1

        def is_finite(item: int) -> bool:
            leaves, start, stop, levels = sums[item]
            work = list(np.empty((tree_depth(len(leaves)), _BLOCK), np.float32))
            with np.errstate(over="ignore"):
                return all(
                    all_finite(
                        tree_sum([leaf[low:high] for leaf in leaves], [w[: high - low] for w in work], levels)
                    )
                    for low in range(start, stop, _BLOCK)
                    for high in [min(low + _BLOCK, stop)]
                )

        return {item for item in self._spoilt if is_finite(item)}

    def forgive(self) -> None:
        """The phase begins anew."""
        self._spoilt.clear()

    def agree(self, arena: Arena, first: int, second: int) -> bool:
        """Whether two slots hold the same bits."""
        self._opinions += 1
        grads = (_of(arena, first).view(np.uint32), _of(arena, second).view(np.uint32))
        sums = (arena.sums[first].tobytes(), arena.sums[second].tobytes())
        return sums[0] == sums[1] and np.array_equal(*grads)

    @property
    def is_hopeless(self) -> bool:
        """No two results agree."""
        return self._opinions >= MAX_OPINIONS

    def judged(self) -> None:
        """The first suspect has a result that is good."""
        del self.suspects[0]
        self._heard = []
        self._opinions = 0

    @staticmethod
    def is_finite(arena: Arena, slot: int) -> bool:
        """Whether the loss and the gradient in a slot are."""
        grads = _of(arena, slot)
        blocks: Iterable[Flat] = (grads[low : low + _BLOCK] for low in range(0, len(grads), _BLOCK))
        return bool(np.isfinite(arena.sums[slot][0]).all()) and all(map(all_finite, blocks))

    @staticmethod
    def record(arena: Arena, step: int, item: int | None, slots: Iterable[int]) -> Diverged:
        """What is kept of a divergence: of one microbatch, or of the sum over these slots."""
        slots = list(slots)
        digest = blake3()
        for slot in slots:
            digest.update(_of(arena, slot).view(np.uint8))  # type: ignore[arg-type]
        with np.errstate(all="ignore"):
            total, weight = (float(x) for x in np.sum([arena.sums[slot][0] for slot in slots], axis=0))
        loss = total / weight if weight else float("nan")
        finite = all(all_finite(_of(arena, slot)) for slot in slots)
        return Diverged(step, item, loss, finite, digest.hexdigest())


def _of(arena: Arena, slot: int) -> Flat:
    return arena.grads[slot][: arena.spec.params.length]
