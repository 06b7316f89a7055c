"""`nn.train.Saver` and `nn.train.import_graph`: what TensorFlow 1's users did in a session."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError, CorruptCheckpoint, IncompatibleCheckpoint
from workers import nn

if TYPE_CHECKING:
    from pathlib import Path


def quadratic() -> tuple[Any, Any, Any]:
    h = nn.Variable(0.5, name="h_est")
    v = nn.Variable(-1.5, name="v_est")
    return h, v, lambda x: nn.ops.square(x - h) + v


def test_row_23_the_last_five_are_kept_and_one_without_a_number_counts(tmp_path: Path) -> None:
    h, v, _ = quadratic()
    saver = nn.train.Saver([h, v])
    for step in range(8):
        h.assign(float(step))
        assert saver.save(tmp_path / "model_iter", global_step=step) == str(tmp_path / f"model_iter-{step}")
    final = saver.save(tmp_path / "model_final")
    kept = [f"model_iter-{n}" for n in (4, 5, 6, 7)]
    assert [os.path.basename(path) for path in saver.last_checkpoints] == [*kept, "model_final"]
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "model_final"])
    assert nn.train.latest_checkpoint(tmp_path) == final
    saver.restore(tmp_path / "model_iter-5")
    assert float(h) == 5.0


def test_row_23_a_list_a_subset_and_other_names(tmp_path: Path) -> None:
    h, v, _ = quadratic()
    nn.train.Saver([h, v]).save(tmp_path / "both")
    nn.train.Saver({"h": h}).save(tmp_path / "renamed")
    assert sorted(nn.train.load_checkpoint(tmp_path / "both")) == ["h_est", "v_est"]
    assert sorted(nn.train.load_checkpoint(tmp_path / "renamed")) == ["h"]
    other = nn.Variable(0.0)
    nn.train.Saver({"v_est": other}).restore(tmp_path / "both")  # the rest is left alone
    assert float(other) == -1.5
    nn.train.Saver({"h": other}).restore(tmp_path / "renamed")
    assert float(other) == 0.5


def test_row_23_without_a_list_all_variables_are_saved(tmp_path: Path) -> None:
    gc.collect()
    h, v, _ = quadratic()
    saver = nn.train.Saver()
    saver.save(tmp_path / "all")
    held = nn.train.load_checkpoint(tmp_path / "all")
    assert float(held.get_tensor("h_est")) == 0.5
    h.assign(0.0)
    v.assign(0.0)
    saver.restore(tmp_path / "all")
    assert (float(h), float(v)) == (0.5, -1.5)


def test_two_variables_of_one_name_are_told_apart() -> None:
    first, second = nn.Variable(1.0, name="x"), nn.Variable(2.0, name="x")
    from workers.nn.train.saver import named

    assert named([first, second]) == {"x": first, "x_1": second}


def test_a_variable_that_was_not_saved_changes_nothing(tmp_path: Path) -> None:
    h, v, _ = quadratic()
    nn.train.Saver([h]).save(tmp_path / "h")
    h.assign(9.0)
    with pytest.raises(IncompatibleCheckpoint, match="holds no v_est"):
        nn.train.Saver([h, v]).restore(tmp_path / "h")
    assert float(h) == 9.0
    with pytest.raises(ConfigurationError, match=r"1.0 is no variable"):
        nn.train.Saver([1.0]).save(tmp_path / "x")  # type: ignore[list-item]  # a mistake


def test_row_23_the_graph_is_stored_beside_the_values_and_runs_without_the_code(tmp_path: Path) -> None:
    h, v, function = quadratic()
    x = np.linspace(-2, 2, 5, dtype=np.float32)
    saver = nn.train.Saver({"h": h, "v": v}, graph=(function, x))
    saver.save(tmp_path / "model", global_step=1)
    expected = np.asarray(function(x))
    h.assign(0.0)
    graph = nn.train.import_graph(tmp_path / "model-1")
    assert np.array_equal(np.asarray(graph(x)), expected)
    assert {name: float(variable) for name, variable in graph.variables.items()} == {"h": 0.5, "v": -1.5}
    with nn.GradientTape() as tape:
        loss = nn.ops.sum(graph(x))
    (gradient,) = tape.gradient(loss, [graph.variables["v"]])
    assert float(gradient) == 5.0
    nn.train.Saver(graph.variables).save(tmp_path / "again")
    with pytest.raises(ConfigurationError, match="input is"):
        graph(np.zeros((2, 2), np.float32))


def test_row_23_constants_of_any_size_and_whole_models_are_imported(tmp_path: Path) -> None:
    model = nn.Sequential([nn.Input((40,)), nn.Dense(3), nn.BatchNormalization()])
    large = np.arange(40 * 40, dtype=np.float32).reshape(40, 40) / 1600
    x = np.ones((2, 40), np.float32)
    saver = nn.train.Saver(model, graph=(lambda x: {"y": model(x @ nn.ops.convert_to_tensor(large))}, x))
    path = saver.save(tmp_path / "model")
    expected = np.asarray(model(x @ large))
    graph = nn.train.import_graph(path)
    assert np.allclose(np.asarray(graph(x)["y"]), expected, atol=1e-6)
    assert not graph.variables["batch_normalization/moving_mean"].trainable


def test_a_graph_needs_saved_variables_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    h, v, function = quadratic()
    x = np.float32(1.0)
    with pytest.raises(ConfigurationError, match="uses variable 'v_est', which is not saved"):
        nn.train.Saver([h], graph=(function, x)).save(tmp_path / "part")
    saver = nn.train.Saver([h, v], graph=(function, x))
    saver.save(tmp_path / "bare", write_meta_graph=False)
    with pytest.raises(ConfigurationError, match="holds no graph"):
        nn.train.import_graph(tmp_path / "bare")
    saver.save(tmp_path / "whole")
    (document,) = (tmp_path / "whole").glob("checkpoints/*/graph.json")
    document.write_bytes(document.read_bytes().replace(b"subtract", b"subtracx"))
    with pytest.raises(CorruptCheckpoint, match=r"graph\.json"):
        nn.train.import_graph(tmp_path / "whole")
