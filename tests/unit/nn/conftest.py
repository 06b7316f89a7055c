"""The golden numbers made by real Keras, and small helpers around engines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
GOLDEN = Path(os.environ.get("REFERENCE_DATA", ROOT.parent / "shared")) / "golden"


class Golden:
    """One entry: class name, keyword arguments, and arrays by their short names."""

    def __init__(self, entry: dict[str, Any], arrays: Any) -> None:
        self.class_name = entry["class"]
        self.kwargs = entry["kwargs"]
        self.inputs = {name: arrays[key] for name, key in entry["inputs"].items()}
        self.outputs = {name: arrays[key] for name, key in entry["outputs"].items()}


@pytest.fixture(scope="session")
def golden() -> Any:
    """A function (kind, id) -> Golden."""
    folder = GOLDEN / "numerics"
    if not folder.is_dir():
        pytest.skip(f"no golden numbers in {folder}: set REFERENCE_DATA")
    entries = json.loads((folder / "numerics.json").read_text())["entries"]
    arrays = np.load(folder / "numerics.npz")
    by_name = {(entry["kind"], entry["id"]): entry for entry in entries}
    return lambda kind, name: Golden(by_name[kind, name], arrays)
