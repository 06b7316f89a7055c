"""Runnable jobs that are shipped with Holdfast, as a user would write them.

`holdfast run digits --run-dir runs/digits --workers 2`; each module holds a function `job` whose keyword
parameters `--set` fills.
"""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, str]] = {
    "digits": (
        "orchestrator.examples.digits",
        "a small network on scikit-learn's 8x8 digits, over 95 % right; needs nothing but this package",
    ),
    "mnist": (
        "orchestrator.examples.mnist",
        "784-512-10 on handwritten digits in idx files, --set data=URL of their folder",
    ),
    "quadratic": (
        "orchestrator.examples.quadratic",
        "y = (x - h)^2 + v fitted with a gradient written by hand: how to bring an engine of one's own",
    ),
}
"""Name -> (module, one-line description). The modules are not imported here."""
