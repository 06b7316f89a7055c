"""Which checkpoint of TensorFlow is meant: by its prefix, by what a directory says, by what is there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest

from storage.formats.tensor_bundle import write_bundle
from storage.formats.tensorflow_files import (
    CheckpointState,
    bundle_at,
    is_prefix,
    latest_in,
    names_in,
    write_state,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """ckpt-2, -9 and -10 and no file that says so."""
    for i in (2, 9, 10):
        write_bundle(str(tmp_path / f"ckpt-{i}"), {"x": np.full(10, i, np.float32)})
    return tmp_path


def test_what_golden_directories_name(reference_data: Path) -> None:
    golden = reference_data / "golden"
    managed = golden / "tf_checkpoint_manager" / "tf_ckpts"
    assert latest_in(str(managed)) == f"{managed}/ckpt-6"
    assert names_in(str(managed)) == ("ckpt-4", "ckpt-5", "ckpt-6")
    saver = golden / "tf1_saver"
    assert names_in(str(saver)) == (*(f"model_iter-{i}" for i in range(96, 100)), "model_final")
    assert latest_in(str(saver)) == bundle_at(str(saver)) == f"{saver}/model_final"
    saved = golden / "saved_model" / "saved_model"
    assert bundle_at(str(saved)) == f"{saved}/variables/variables"


def test_section5_without_the_file_the_last_number_is_the_latest(some: Path) -> None:
    assert latest_in(str(some)) == f"{some}/ckpt-10"
    assert bundle_at(f"{some}/ckpt-9.index") == bundle_at(f"{some}/ckpt-9") == f"{some}/ckpt-9"
    assert bundle_at(f"{some}/ckpt-9.data-00000-of-00001") == f"{some}/ckpt-9"
    assert is_prefix(f"{some}/ckpt-9")
    assert not is_prefix(str(some))
    assert latest_in(str(some / "nowhere")) is None
    assert bundle_at(str(some / "ckpt-3")) is None


def test_the_file_decides_and_what_is_damaged_is_skipped(
    some: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_state(str(some), CheckpointState("ckpt-9", ("ckpt-2", "ckpt-9")))
    assert latest_in(str(some)) == f"{some}/ckpt-9"
    data = some / "ckpt-9.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1] + b"\1")
    with caplog.at_level(logging.WARNING):
        assert latest_in(str(some)) == f"{some}/ckpt-2"
    assert "ckpt-9 is skipped" in caplog.text
    assert "wrong checksum" in caplog.text
    assert latest_in(str(some), verify=False) == f"{some}/ckpt-9"


@pytest.mark.parametrize(
    "path",
    [
        "/home/somebody/run/ckpt-2",
        "../../outside/ckpt-2",
        "ckpt-2",
        "C:\\run\\ckpt-2",
        "./ckpt-2",
    ],
)
def test_no_path_in_the_file_leads_out_of_the_directory(some: Path, path: str) -> None:
    outside = some.parent / "outside"
    outside.mkdir(exist_ok=True)
    write_bundle(str(outside / "ckpt-77"), {"x": np.float32(1)})
    write_state(str(some), CheckpointState(path))
    assert latest_in(str(some)) == f"{some}/ckpt-2"
    for bad in ("../outside/ckpt-77", str(outside / "ckpt-77"), "..", "/", "", ".hidden", "a\0b", "x" * 5000):
        write_state(str(some), CheckpointState(bad))
        assert latest_in(str(some)) == f"{some}/ckpt-10", bad


def test_the_file_is_written_and_read_as_text_of_any_letters() -> None:
    state = CheckpointState('a "b"\n\u00e9', ("c\\d", 'a "b"\n\u00e9'))
    assert CheckpointState.parse(state.text()) == state
    assert state.text().isascii()
    assert state.names == ("d", 'a "b"\n\u00e9')
    assert CheckpointState.parse('model_checkpoint_path: "a\\x62\\143"\nlast_preserved_timestamp: 1.5\n') == (
        CheckpointState("abc")
    )


@pytest.mark.parametrize(
    "text", ["", "nonsense", "model_checkpoint_path: ckpt", 'all_model_checkpoint_paths: "a"']
)
def test_a_file_that_names_nothing_says_nothing(some: Path, text: str) -> None:
    (some / "checkpoint").write_text(text)
    assert latest_in(str(some)) == f"{some}/ckpt-10"
    (some / "checkpoint").write_bytes(b"\xff" * 100)
    assert latest_in(str(some)) == f"{some}/ckpt-10"


def test_another_name_for_the_file(some: Path) -> None:
    (some / "other_state").write_text('model_checkpoint_path: "ckpt-2"\n')
    assert latest_in(str(some), "other_state") == f"{some}/ckpt-2"
