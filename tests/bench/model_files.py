"""Models' files: the native format beside raw files, Keras's and TensorFlow's beside the real ones."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from typing import TYPE_CHECKING, Any

import keras_files
import numpy as np
import tensorflow_files

from workers import nn

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

Rows = list[tuple[str, str]]


def native(place: Path, options: argparse.Namespace) -> Rows:
    """400 MB of weights: `model.save` and `nn.load_model`, and files of the same bytes, in turn; medians."""
    width, pairs = (100, 1) if options.tiny else (5000, 7)
    model = nn.Sequential([nn.Input((width,)), *(nn.Dense(width) for _ in range(4))])
    arrays = [variable.numpy() for variable in model.weights]
    nbytes = sum(array.nbytes for array in arrays)
    saves, loads = [], []
    for _ in range(pairs):
        saves.append((_save(model, place / "model"), _write(arrays, place / "raw")))
        loads.append((_load(place / "model"), _read(place / "raw")))
        shutil.rmtree(place / "model")
        shutil.rmtree(place / "raw")
    return [
        (f"{nbytes / 1e6:.0f} MB: save, of raw files + fsync (at most 1.3)", _ratio(saves)),
        ("load, every byte checked, of raw reads (at most 1.3)", _ratio(loads)),
    ]


def of_keras(place: Path, options: argparse.Namespace) -> Rows:
    """400 MB of weights in Keras's files, by us and by real Keras in turn; medians, ratios pair by pair."""
    if not options.peer_python:
        return [("Keras's files", "not measured: no --peer-python")]
    mb, layers, rounds = (1, 2, 1) if options.tiny else (400, 20, 7)
    return keras_files.measure(options.peer_python, place, mb, layers, rounds)


def of_tensorflow(place: Path, options: argparse.Namespace) -> Rows:
    """Reading a V2 checkpoint of 400 MB, every checksum verified, beside TensorFlow; medians."""
    python = options.tensorflow_python
    mb, rounds = (1, 1) if options.tiny else (400, 5)
    found = tensorflow_files.measure(mb, rounds, python, str(place))
    rows = [("ours", f"{found['ours_mbytes_per_s']:.0f} MB/s")]
    if python is None:
        return [*rows, ("TensorFlow", "not measured: no --tensorflow-python")]
    rows.append(("TensorFlow", f"{found['tensorflow_mbytes_per_s']:.0f} MB/s"))
    return [*rows, ("ours, of TensorFlow's speed (at least 0.5)", f"{found['ratio']:.2f}")]


def _ratio(pairs: list[tuple[float, float]]) -> str:
    ours, raw = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return f"{statistics.median(ratios):.2f} ({spread}; {ours:.2f} s, {raw:.2f} s)"


def _save(model: Any, path: Path) -> float:
    os.sync()
    began = time.monotonic()
    model.save(path)
    return time.monotonic() - began


def _load(path: Path) -> float:
    began = time.monotonic()
    nn.load_model(path)
    return time.monotonic() - began


def _write(arrays: list[Any], folder: Path) -> float:
    os.sync()
    began = time.monotonic()
    folder.mkdir()
    for i, array in enumerate(arrays):
        with (folder / str(i)).open("wb") as file:
            file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.monotonic() - began


def _read(folder: Path) -> float:
    began = time.monotonic()
    found = [np.fromfile(path, np.float32) for path in sorted(folder.iterdir())]
    assert found
    return time.monotonic() - began
