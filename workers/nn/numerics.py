"""What all of the core's arithmetic shares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.memory import aligned_empty as aligned_empty  # what computes takes it from here

Array = NDArray[Any]
Shape = tuple[int, ...]


def quiet() -> np.errstate:
    """A context without NumPy's warnings of overflow, invalid values and division by zero.

    A run that diverges is found by its loss; the warnings would only hide that message.
    """
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")
