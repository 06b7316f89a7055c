"""A long curve as few points that look the same: the least and greatest of each stretch are kept. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MOST = 1500
"""Points of one curve: more than a screen has columns for."""

VALIDATION = "val_"
PACE = "steps_per_s"


def thinned(
    steps: NDArray[np.int64], values: NDArray[np.float64], most: int = MOST
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At most about `most` of the points, in the order of steps.

    Of each stretch the least, the greatest and the first value that is not finite stay, of the whole also
    both ends: no spike is lost, and no gap.
    """
    count = len(steps)
    if count <= most:
        return steps, values
    width = -(-count // max(1, most // 3))
    rows = -(-count // width)
    padded = np.full(rows * width, np.nan)
    padded[:count] = values
    grid = padded.reshape(rows, width)
    finite = np.isfinite(grid)
    starts = np.arange(rows) * width
    picks = [
        starts + np.where(finite, grid, np.inf).argmin(1),
        starts + np.where(finite, grid, -np.inf).argmax(1),
    ]
    faulty = ~finite
    faulty.reshape(-1)[count:] = False
    picks.append((starts + faulty.argmax(1))[faulty.any(1)])
    chosen = np.unique(np.concatenate([*picks, [0, count - 1]]))
    return steps[chosen], values[chosen]


def series(name: str, steps: NDArray[np.int64], values: NDArray[np.float64]) -> dict[str, Any]:
    """One curve as JSON values, with its figures; null stands for what is not finite.

    Rows without a value for it must be left out before.
    """
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    finite = np.isfinite(values)
    x, y = thinned(steps, values)
    return {
        "name": name,
        "chart": chart_of(name),
        "count": len(values),
        "not_finite": int((~finite).sum()),
        "steps": x.tolist(),
        "values": [float(f"{value:.7g}") if np.isfinite(value) else None for value in y.tolist()],
        **_figures(steps[finite], values[finite]),
    }


def _figures(steps: NDArray[np.int64], values: NDArray[np.float64]) -> dict[str, Any]:
    """First, last, least and greatest, each as [step, value]; null where there is no value at all."""
    if not len(values):
        return dict.fromkeys(("first", "last", "least", "greatest"))
    picks = {"first": 0, "last": -1, "least": int(values.argmin()), "greatest": int(values.argmax())}
    return {what: [int(steps[i]), float(values[i])] for what, i in picks.items()}


def chart_of(name: str) -> str:
    """The chart that a curve belongs to: that of training and of validation are drawn together."""
    return name.removeprefix(VALIDATION)


def in_order(names: Sequence[str]) -> list[str]:
    """The curves as they are shown: the loss first, the pace last, validation behind training."""

    def rank(name: str) -> tuple[int, str, bool]:
        chart = chart_of(name)
        return (0 if chart == "loss" else 2 if chart == PACE else 1, chart, name != chart)

    return sorted(names, key=rank)
