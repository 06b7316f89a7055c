"""Signatures, tags and assets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import storage
from storage.errors import ConfigurationError, CorruptCheckpoint
from workers import nn
from workers.nn.saved_model import SERVING, TRAINING, SavedModelBuilder
from workers.nn.tensor import Untraceable

if TYPE_CHECKING:
    from pathlib import Path

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


@pytest.fixture
def model() -> Any:
    return nn.Sequential([nn.Input((4,)), nn.Dense(3), nn.Dropout(0.5)])


def test_row_25_tags_choose_among_signatures_over_the_same_variables(model: Any, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a b c")
    builder = SavedModelBuilder(tmp_path / "m")
    builder.add_meta_graph_and_variables(
        model, [TRAINING], {"train": model}, assets_collection=[words], extra_assets=[words]
    )
    builder.add_meta_graph(
        [SERVING, "cpu"], {"double": lambda x: 2 * model(x), "half": lambda x: model(x) / 2}
    )
    builder.save()
    loaded = nn.saved_model.load(tmp_path / "m", ["cpu", SERVING])
    assert {*loaded.signatures} == {"double", "half"}
    assert np.array_equal(loaded.signatures["double"](X)["output_0"], 2 * model(X).numpy())
    assert loaded.tags == ("cpu", "serve")
    assert {*nn.saved_model.load(tmp_path / "m", TRAINING).signatures} == {"train"}
    assert loaded.assets == ("assets.extra/words.txt", "assets/words.txt")
    assert loaded.read_asset("assets/words.txt") == b"a b c"
    with pytest.raises(CorruptCheckpoint, match="holds no assets/other"):
        loaded.read_asset("assets/other")
    again = nn.load_model(tmp_path / "m")
    assert np.array_equal(again(X).numpy(), model(X).numpy())


@pytest.mark.parametrize("tags", [None, "gpu", ["serve", "gpu"], []])
def test_row_25_loading_with_a_wrong_tag_fails(model: Any, tags: Any, tmp_path: Path) -> None:
    builder = SavedModelBuilder(tmp_path / "m")
    builder.add_meta_graph_and_variables(model, "serve")
    builder.add_meta_graph(["train"])
    builder.save()
    with pytest.raises(
        ConfigurationError, match=r"nothing was saved with the tags .*there are \['serve'\] and"
    ):
        nn.saved_model.load(tmp_path / "m", tags)


def test_row_25_signatures_of_several_inputs_by_name(model: Any, tmp_path: Path) -> None:
    def mixed(pair: Any, scale: Any) -> Any:
        return {"sum": model(pair["a"]) + model(pair["b"]), "scaled": scale * pair["a"]}

    pair = {"a": nn.Input((4,)), "b": nn.Input((4,))}
    model.save(tmp_path / "m", signatures={"mixed": (mixed, pair, X[:, :1])})
    signature = nn.saved_model.load(tmp_path / "m").signatures["mixed"]
    assert signature.inputs == ("a", "b", "input_1")
    found = signature(a=X, b=X[::-1], input_1=X[:, :1])
    assert np.array_equal(found["sum"], (model(X) + model(X[::-1])).numpy())
    assert np.array_equal(found["scaled"], X[:, :1] * X)
    with pytest.raises(ConfigurationError, match=r"takes a, b, input_1, and got 1 inputs \(c\)"):
        signature(c=X)


def test_row_09_a_signature_may_be_one_function(model: Any, tmp_path: Path) -> None:
    nn.saved_model.save(model, tmp_path / "m", signatures=lambda x: model(x) + 1.0)
    found = nn.saved_model.load(tmp_path / "m").signatures["serving_default"](X)
    assert np.array_equal(found["output_0"], model(X).numpy() + 1)


def test_a_signature_that_cannot_be_traced_or_uses_other_variables_is_refused(
    model: Any, tmp_path: Path
) -> None:
    other = nn.Variable(np.ones(3, np.float32), name="other")
    with pytest.raises(
        ConfigurationError, match="variable 'other' is used, but no layer of the model holds it"
    ):
        model.save(tmp_path / "m", signatures={"f": lambda x: model(x) * other})
    with pytest.raises(Untraceable, match=r"test_saved_model\.py, line"):
        model.save(tmp_path / "m", signatures={"f": lambda x: model(x) * float(nn.ops.sum(x))})
    with pytest.raises(ConfigurationError, match="3 is no function"):
        model.save(tmp_path / "m", signatures={"f": (3,)})
    assert storage.latest(str(tmp_path / "m")) is None


def test_a_builder_asked_in_the_wrong_order(model: Any, tmp_path: Path) -> None:
    builder = SavedModelBuilder(tmp_path / "m")
    with pytest.raises(ConfigurationError, match="call add_meta_graph_and_variables first"):
        builder.add_meta_graph("x")
    with pytest.raises(ConfigurationError, match="nothing was added"):
        builder.save()
    builder.add_meta_graph_and_variables(model)
    with pytest.raises(ConfigurationError, match=r"the tags \['serve'\] are taken"):
        builder.add_meta_graph("serve")
    with pytest.raises(ConfigurationError, match="it has a model already"):
        builder.add_meta_graph_and_variables(model)


def test_large_constants_of_graphs_and_signatures_are_arrays(model: Any, tmp_path: Path) -> None:
    table = np.random.default_rng(1).standard_normal((4, 3000)).astype(np.float32)

    def wide(x: Any) -> Any:
        return nn.ops.matmul(x, table)

    wider = nn.Sequential([nn.Input((4,)), nn.Lambda(wide), nn.Dense(2)])
    wider.save(tmp_path / "m", signatures={"f": wide, "g": wider})
    again = nn.load_model(tmp_path / "m")
    assert np.array_equal(again.predict(X, verbose=0), wider.predict(X, verbose=0))
    loaded = nn.saved_model.load(tmp_path / "m")
    assert np.allclose(loaded.signatures["f"](X)["output_0"], X @ table, atol=1e-5)
    assert np.array_equal(loaded.signatures["g"](X)["output_0"], again(X).numpy())
