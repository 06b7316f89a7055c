"""`nn.backend`: what scripts of Keras's ask of it."""

from __future__ import annotations

import gc

from workers.nn.tensor import FLOATX


def clear_session(free_memory: bool = True) -> None:
    """Collect models that are no longer used. There is nothing else to clear: names are numbered within each
    model, and nothing is kept for the process."""
    if free_memory:
        gc.collect()


def floatx() -> str:
    """The dtype of weights and results, where no other is asked for."""
    return FLOATX
