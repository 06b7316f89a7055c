"""`holdfast model show`, `verify` and `convert`, as one uses them after a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers import nn

if TYPE_CHECKING:
    from tests.integration.harness import Place


def test_the_weights_of_a_run_become_a_model_of_keras(place: Place) -> None:
    place.run("tiny.py", "run", steps=20).done()
    place.cli("model", "convert", "run", "out.keras").one_clear_line(
        2, "run is a checkpoint", "--architecture"
    )
    done = (
        place.cli("model", "convert", "run", "out.keras", "--architecture", "tiny.py", "--json")
        .expect(0)
        .json
    )
    assert done["lost"] == ["optimizer state"]
    assert nn.load_model(place.root / "out.keras").count_params() == done["parameters"]
    shown = place.cli("model", "show", "out.keras").expect(0).stdout
    assert f"Total params: {done['parameters']:,}" in shown
    assert "Optimizer: " in shown
    told = place.cli("model", "convert", "out.keras", "model").expect(0).stdout.splitlines()
    assert told[1] == "lost: nothing"
    assert place.cli("model", "verify", "model", "--json").expect(0).json["ok"] is True


def test_mistakes_are_told_in_one_line(place: Place) -> None:
    place.file("words.npz", "no zip")
    place.cli("model", "show", "words.npz").one_clear_line(1, "words.npz")
    assert "damaged" in place.cli("model", "verify", "words.npz").expect(3).stdout
    place.cli("model", "show", "none").one_clear_line(2, "there is no model")
    place.cli("model", "convert", "none", "a.keras").one_clear_line(2, "there is no model")
    assert place.cli("model", "verify", "words.npz", "--json").expect(3).json["ok"] is False
    for words in (["show", "none"], ["verify", "none"], ["convert", "none", "a.keras"], ["show"]):
        failed = place.cli("model", *words, "--json").expect(2).json
        assert failed.keys() == {"status", "error"}
        assert failed["status"] == "failed"
        assert failed["error"]
