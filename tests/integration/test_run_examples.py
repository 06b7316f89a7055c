"""The shipped examples do what they say, and their checkpoints open with nothing but zarr."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from tests.integration.harness import latest, variable

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.harness import Place


@pytest.mark.slow
def test_digits_reaches_95_percent(place: Place) -> None:
    outcome = place.run("digits", workers=2, timeout_s=240)
    result = outcome.done()
    assert result["metrics"]["val_accuracy"] > 0.95, str(outcome)
    place.assert_nothing_left()


@pytest.mark.slow
def test_mnist_reaches_86_percent(place: Place, reference_data: Path) -> None:
    folder = (
        reference_data / "mnist" if (reference_data / "mnist").is_dir() else reference_data / "data" / "mnist"
    )
    if not folder.is_dir():
        pytest.skip(f"no MNIST files at {folder}")
    outcome = place.run("mnist", workers=2, settings={"data": folder}, timeout_s=240)
    result = outcome.done()
    assert result["metrics"]["val_accuracy"] >= 0.86, str(outcome)
    place.assert_nothing_left()


def test_mnist_without_its_files_names_the_folder(place: Place) -> None:
    (place.root / "empty").mkdir()
    place.run("mnist", settings={"data": place.root / "empty"}, as_json=False).one_clear_line(
        2, "empty", "idx"
    )


def test_quadratic_finds_its_parameters_as_zarr_alone_shows(place: Place) -> None:
    place.run("quadratic", workers=2, timeout_s=240).done()
    checkpoint = latest(place.root / "run").path
    assert float(np.squeeze(variable(checkpoint, "h"))) == pytest.approx(1.0, abs=0.05)
    assert float(np.squeeze(variable(checkpoint, "v"))) == pytest.approx(-2.0, abs=0.05)
    place.assert_nothing_left()


def test_named_variables_tile_the_flat_array_of_a_checkpoint(place: Place) -> None:
    place.run(steps=10).done()
    checkpoint = latest(place.root / "run").path
    names = {"dense/kernel": (16, 16), "dense/bias": (16,), "dense_1/kernel": (16, 4), "dense_1/bias": (4,)}
    for name, shape in names.items():
        values = variable(checkpoint, name)
        assert values.shape == shape
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert values.any()
    group: Any = zarr.open_group(str(checkpoint), mode="r")
    # zarr warns, when it lists members, of the manifest that lies beside them.
    warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
    assert {"params", "slots"} <= {name for name, _ in group.members()}
    assert {name for name, _ in group["slots"].members()} == {"adam_m", "adam_v"}


def test_a_flipped_bit_in_a_checkpoint_does_not_go_unnoticed_by_zarr(place: Place) -> None:
    place.run(steps=10).done()
    checkpoint = latest(place.root / "run").path
    objects = json.loads((checkpoint / "manifest.json").read_bytes())["objects"]
    key = next(key for key in sorted(objects) if key.startswith("params/c/"))
    raw = bytearray((checkpoint / key).read_bytes())
    raw[100] ^= 1
    (checkpoint / key).write_bytes(raw)
    group: Any = zarr.open_group(str(checkpoint), mode="r")
    with pytest.raises(Exception, match=r"(?i)checksum|crc"):
        group["params"][:]


def test_a_damaged_newest_checkpoint_is_left_for_the_one_before(place: Place) -> None:
    """The digest of the whole run must come out all the same, and the user is told."""
    settings = {"every": 20}
    first = place.run(steps=60, settings=settings).done()
    newest = latest(place.root / "run")
    shard = next(path for path in sorted((newest.path / "params").rglob("*")) if path.name.isdigit())
    shard.write_bytes(bytes(byte ^ 255 for byte in shard.read_bytes()))
    place.forget_memory()
    again = place.run(steps=70, settings=settings)
    result = again.done()
    assert newest.path.name.split("-")[1].lstrip("0") in again.stderr, f"the user was not told{again}"
    fresh = place.run(run_dir="fresh", steps=70, settings=settings).done()
    assert result["state_digest"] == fresh["state_digest"]
    assert result["state_digest"] != first["state_digest"]
