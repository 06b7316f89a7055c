"""An update has the same bits for every number of workers that share it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage.layout import Layout
from workers import nn
from workers.schedule import blocks, segments, tree_depth
from workers.updates import BLOCK, MeanGradient, longest_block, measured, update_block

SHAPES = {"a": (600, 160), "b": (120,), "c": (120, 400), "d": (400,), "e": (7,)}
LAYOUT = Layout.of(SHAPES)
MICROBATCHES = 3
OPTIMIZERS = {
    "adam": nn.optimizers.Adam(0.01),
    "clipnorm": nn.optimizers.Adam(0.01, clipnorm=0.5),
    "global_clipnorm": nn.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5),
    "lamb": nn.optimizers.Lamb(0.01),
    "accumulates": nn.optimizers.Adam(0.01, global_clipnorm=0.5, gradient_accumulation_steps=2),
}


def rules(optimizer: nn.optimizers.Optimizer) -> nn.optimizers.ModelOptimizer:
    variables = [nn.Variable("zeros", shape, name=name) for name, shape in SHAPES.items()]
    variables[2].constraint = nn.constraints.MaxNorm(1.0)
    return nn.optimizers.for_model(optimizer, LAYOUT, variables)


def gradients(step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    found = [np.zeros(LAYOUT.length, np.float32) for _ in range(MICROBATCHES)]
    for flat in found:
        for view in LAYOUT.views(flat).values():
            view[...] = rng.standard_normal(view.shape)
    return found


def trained(optimizer: Any, workers: int, weights: list[float]) -> list[bytes]:
    """The state after a step for each of `weights`, each by workers that know nothing of each other."""
    length = LAYOUT.length
    state = [np.ones(length, np.float32), *(np.zeros(length, np.float32) for _ in optimizer.slots)]
    for step, weight in enumerate(weights):
        leaves = gradients(step)
        new = [np.full(length, np.nan, np.float32) for _ in state]
        for start, stop in segments(length, workers, optimizer.whole):
            work = np.empty(
                (tree_depth(MICROBATCHES) + 2, longest_block(length, optimizer.whole)), np.float32
            )
            mean = MeanGradient(leaves, None, np.float32(weight or 1), work[:-1])
            sums = measured(optimizer, step, state[1:], mean, length)
            for ends in blocks(start, stop, BLOCK, optimizer.whole):
                update_block(
                    optimizer,
                    step,
                    ends,
                    (state[0], state[1:]),
                    (new[0], new[1:]),
                    mean(*ends),
                    np.float32(weight),
                    work[-1],
                    sums,
                )
        state = new
    return [view.tobytes() for array in state for view in LAYOUT.views(array).values()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_bit_depends_on_the_number_of_workers(name: str) -> None:
    optimizer = rules(OPTIMIZERS[name])
    assert LAYOUT.length > 2 * BLOCK
    alone = trained(optimizer, 1, [30, 20, 30])
    for workers in (2, 3, 7):
        assert trained(optimizer, workers, [30, 20, 30]) == alone


def test_sums_are_over_all_of_the_mean_gradient() -> None:
    optimizer = rules(OPTIMIZERS["clipnorm"])
    leaves = gradients(0)
    work = np.empty((tree_depth(MICROBATCHES) + 1, BLOCK), np.float32)
    found = measured(optimizer, 0, [], MeanGradient(leaves, None, np.float32(8), work), LAYOUT.length)
    mean = LAYOUT.views(np.sum(leaves, axis=0, dtype=np.float64) / 8)
    assert found is not None
    np.testing.assert_allclose(found, [np.sum(view**2) for view in mean.values()], rtol=1e-5)
    assert measured(rules(OPTIMIZERS["adam"]), 0, [], lambda low, high: leaves[0], LAYOUT.length) is None


def test_a_step_without_any_weight_changes_nothing() -> None:
    optimizer = rules(OPTIMIZERS["adam"])
    assert trained(optimizer, 2, [30, 0]) == trained(optimizer, 2, [30])
