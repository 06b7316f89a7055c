"""Random numbers outside of training jobs: a seed of the process, and a count of what was drawn from it.

In a job, every draw is a function of its seed, the step and the microbatch (`workers.rng`); this is for
models that are made, called and trained by hand.
"""

from __future__ import annotations

import secrets

from workers.rng import Purpose, Streams

_seed = secrets.randbits(63)
_drawn = 0


def set_seed(seed: int) -> None:
    """In place. Make all that is drawn from now on, initial values too, a function of `seed`."""
    global _seed, _drawn
    _seed, _drawn = seed, 0


def get_state() -> tuple[int, int]:
    """The seed, and how often was drawn from it."""
    return _seed, _drawn


def set_state(state: tuple[int, int]) -> None:
    """In place. Go on from what `get_state` gave."""
    global _seed, _drawn
    _seed, _drawn = state


def next_streams(purpose: Purpose = Purpose.TRAIN) -> Streams:
    """Streams that nobody else has."""
    global _drawn
    _drawn += 1
    return Streams(_seed, _drawn, purpose=purpose)


def next_seed() -> int:
    """A seed of a training that was given none."""
    return int(next_streams().generator().integers(2**63))
