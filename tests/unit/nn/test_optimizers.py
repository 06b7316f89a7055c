"""Updates are elementwise, equal to the bit for every cut, and the same in place as out of place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigurationError
from storage.layout import Layout
from tests.unit.nn.stepping import step_once
from workers import nn

OPTIMIZERS = {
    "sgd": nn.optimizers.SGD(0.1),
    "momentum": nn.optimizers.SGD(0.1, momentum=0.9),
    "nesterov": nn.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": nn.optimizers.Adam(),
    "amsgrad": nn.optimizers.Adam(amsgrad=True),
    "adamw": nn.optimizers.AdamW(),
    "rmsprop": nn.optimizers.RMSprop(),
    "rmsprop_all": nn.optimizers.RMSprop(momentum=0.9, centered=True),
    "adagrad": nn.optimizers.Adagrad(),
    "adadelta": nn.optimizers.Adadelta(),
    "adamax": nn.optimizers.Adamax(),
    "nadam": nn.optimizers.Nadam(),
    "lion": nn.optimizers.Lion(),
    "ftrl": nn.optimizers.Ftrl(l1_regularization_strength=0.01, beta=0.1),
    "ftrl_power": nn.optimizers.Ftrl(learning_rate_power=-0.3, l2_shrinkage_regularization_strength=0.1),
    "lamb": nn.optimizers.Lamb(),
    "clipvalue": nn.optimizers.Adam(clipvalue=0.5),
    "clipnorm": nn.optimizers.Adam(clipnorm=0.5),
    "global_clipnorm": nn.optimizers.SGD(global_clipnorm=0.5, momentum=0.9),
    "unscaled": nn.optimizers.Adam(loss_scale_factor=1024.0),
    "ema": nn.optimizers.Adam(use_ema=True),
    "ema_overwrites": nn.optimizers.SGD(use_ema=True, ema_overwrite_frequency=2),
    "accumulates": nn.optimizers.Adam(gradient_accumulation_steps=3),
    "all": nn.optimizers.AdamW(
        weight_decay=0.01,
        global_clipnorm=0.5,
        use_ema=True,
        ema_overwrite_frequency=3,
        gradient_accumulation_steps=2,
        loss_scale_factor=2.0,
    ),
    "schedule": nn.optimizers.SGD(nn.optimizers.schedules.CosineDecay(0.1, 50_000)),
}
LAYOUT = Layout.of({"a": (5, 9), "b": (), "c": (101,), "d": (3, 3)})
LENGTH = LAYOUT.length


def state(count: int) -> list[np.ndarray]:
    """Weights, a gradient and slots where the variables are, and zeros between them.

    Slots are positive, and the first is above the squares of the others, as mean squares are.
    """
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        low, high = [(-1, 1), (-1, 1), (1, 2), *[(0.1, 0.9)] * count][i]
        array = np.zeros(LENGTH, np.float32)
        for view in LAYOUT.views(array).values():
            view[...] = rng.uniform(low, high, view.shape)
        found.append(array)
    return found


def updated(optimizer: Any, step: int, **how: Any) -> list[bytes]:
    params, grad, *slots = state(len(optimizer.slots) + 2)
    before = [array.tobytes() for array in (params, grad, *slots)]
    new, new_slots = step_once(optimizer, step, params, slots, grad, **how)
    assert [array.tobytes() for array in (params, grad, *slots)] == before
    found = []
    for array in (new, *new_slots):
        for view in LAYOUT.views(array).values():
            assert np.isfinite(view).all()
            found.append(view.tobytes())
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
@given(
    step=st.one_of(st.integers(0, 7), st.integers(0, 100_000)),
    cuts=st.lists(st.integers(0, LENGTH), max_size=8),
    in_place=st.booleans(),
)
def test_bits_are_the_same_for_every_cut_and_in_place(
    name: str, step: int, cuts: list[int], in_place: bool
) -> None:
    optimizer = nn.optimizers.for_model(OPTIMIZERS[name], LAYOUT)
    assert updated(optimizer, step, cuts=cuts, in_place=in_place) == updated(optimizer, step)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("step", [0, 5, 6])
def test_without_a_layout_the_bits_are_those_with_one_or_it_is_asked_for(name: str, step: int) -> None:
    optimizer = OPTIMIZERS[name]
    if name in ("adagrad", "ftrl", "ftrl_power", "lamb", "clipnorm"):
        with pytest.raises(ConfigurationError, match=r"has to know where variables lie.*for_model"):
            updated(optimizer, step)
    else:
        assert updated(optimizer, step) == updated(nn.optimizers.for_model(optimizer, LAYOUT), step)


class WrittenOnce(np.ndarray):
    """An array that counts how often it is written."""

    writes = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        plain = [np.asarray(array) for array in inputs]
        if out is None:
            return getattr(ufunc, method)(*plain, **kwargs)
        if isinstance(out[0], WrittenOnce):
            out[0].writes += 1
        getattr(ufunc, method)(*plain, out=tuple(map(np.asarray, out)), **kwargs)
        return out[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.copyto and isinstance(args[0], WrittenOnce):
            args[0].writes += 1
        return super().__array_function__(func, types, args, kwargs)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.writes += 1
        super().__setitem__(key, value)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("step", [0, 5, 6])
def test_each_new_value_is_written_once(name: str, step: int) -> None:
    optimizer = OPTIMIZERS[name]
    params, grad, *slots = state(len(optimizer.slots) + 2)
    new = [np.zeros(LENGTH, np.float32).view(WrittenOnce) for _ in range(len(slots) + 1)]
    scratch = np.empty(LENGTH, np.float32)
    rule = nn.optimizers.flat.DEFAULT
    optimizer.update_piece(rule, step, params, slots, grad, new[0], new[1:], scratch, sums=np.array([9.0]))
    assert [array.writes for array in new] == [1] * len(new)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_config_makes_an_equal_optimizer(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    for again in (
        type(optimizer).from_config(optimizer.get_config()),
        nn.optimizers.deserialize(nn.optimizers.serialize(optimizer)),
    ):
        assert again.get_config() == optimizer.get_config()
        assert again.slots == optimizer.slots
        step = nn.optimizers.for_model(again, LAYOUT)
        assert updated(step, 1) == updated(nn.optimizers.for_model(optimizer, LAYOUT), 1)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("adam", nn.optimizers.Adam),
        ("adamw", nn.optimizers.AdamW),
        ("rmsprop", nn.optimizers.RMSprop),
        ("RMSprop", nn.optimizers.RMSprop),
        ("ftrl", nn.optimizers.Ftrl),
    ],
)
def test_names_stand_for_optimizers(name: str, cls: type) -> None:
    assert type(nn.optimizers.get(name)) is cls


def test_a_learning_rate_can_be_set_read_and_called() -> None:
    optimizer = nn.optimizers.SGD(0.5)
    params, grad = state(2)

    def step(knobs: Any = None) -> np.ndarray:
        new, _ = step_once(optimizer, 0, params, [], grad, knobs=knobs)
        return (params - new)[0] / grad[0]

    assert step() == pytest.approx(0.5)
    optimizer.learning_rate = 0.25
    assert float(optimizer.learning_rate) == 0.25 == optimizer.get_config()["learning_rate"]
    assert step() == pytest.approx(0.25)
    optimizer.learning_rate.assign(0.125)
    assert step() == pytest.approx(0.125)
    assert step({"learning_rate": 0.75}) == pytest.approx(0.75)
    optimizer.learning_rate = lambda: 0.375
    assert step() == pytest.approx(0.375)
    optimizer.learning_rate = nn.optimizers.schedules.InverseTimeDecay(0.5, 1, 1.0)
    assert step() == pytest.approx(0.5)
    assert optimizer.learning_rate == 0.5
    with pytest.raises(ConfigurationError, match="follows a schedule, and cannot be set to a number"):
        optimizer.learning_rate = 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.optimizers.SGD("fast"), "learning_rate must be a number from 0 up, not 'fast'"),
        (lambda: nn.optimizers.SGD(clipnorm=1.0, clipvalue=1.0), "only one of clipnorm and clipvalue"),
        (lambda: nn.optimizers.SGD(clipnorm=0), "clipnorm must be positive, not 0"),
        (lambda: nn.optimizers.SGD(weight_decay=-1), "weight_decay must be a number from 0 up, not -1"),
        (lambda: nn.optimizers.SGD(use_ema=True, ema_momentum=2), "ema_momentum must be from 0 to 1, not 2"),
        (lambda: nn.optimizers.SGD(ema_overwrite_frequency=0), "ema_overwrite_frequency must be a positive"),
        (lambda: nn.optimizers.SGD(loss_scale_factor=0), "loss_scale_factor must be positive, not 0"),
        (lambda: nn.optimizers.SGD(gradient_accumulation_steps=1), "an integer from 2 up, not 1"),
        (lambda: nn.optimizers.AdamW(weight_decay=None), "weight_decay must be a number; without it"),
        (lambda: nn.optimizers.RMSprop(rho=2), "RMSprop: rho must be from 0 to 1, not 2"),
        (lambda: nn.optimizers.RMSprop(momentum=-1), "momentum must be from 0 to 1, not -1"),
        (lambda: nn.optimizers.Adadelta(epsilon=0), "Adadelta: epsilon must be positive, not 0"),
        (lambda: nn.optimizers.Adagrad(initial_accumulator_value=-1), "initial_accumulator_value must be"),
        (lambda: nn.optimizers.Adagrad(epsilon=0), "Adagrad: epsilon must be positive, not 0"),
        (lambda: nn.optimizers.Lion(beta_1=0), "Lion: beta_1 must be above 0 and at most 1, not 0"),
        (lambda: nn.optimizers.Lion(beta_2=2), "Lion: beta_2 must be from 0 to 1, not 2"),
        (lambda: nn.optimizers.Nadam(epsilon=0), "Nadam: epsilon must be positive, not 0"),
        (lambda: nn.optimizers.Ftrl(learning_rate_power=1), "learning_rate_power must be from 0 down, not 1"),
        (lambda: nn.optimizers.Ftrl(l1_regularization_strength=-1), "l1_regularization_strength must be"),
        (lambda: nn.optimizers.schedules.CosineDecay(0.1, 0), "decay_steps must be positive, not 0"),
        (lambda: nn.optimizers.schedules.CosineDecay(0.1, 1, warmup_steps=-1), "warmup_steps must be"),
        (lambda: nn.optimizers.schedules.CosineDecayRestarts(0.1, 1, t_mul=0.5), "t_mul must be from 1 up"),
        (lambda: nn.optimizers.schedules.PiecewiseConstantDecay([1], [1.0]), "1 boundaries need one value"),
        (lambda: nn.optimizers.schedules.PiecewiseConstantDecay([2, 1], [1, 2, 3]), "must ascend"),
        (lambda: nn.optimizers.schedules.deserialize({"class_name": "X"}), "unknown learning rate schedule"),
        (lambda: step_once(nn.optimizers.for_model(nn.optimizers.Ftrl(0.0), LAYOUT), 0, *three()), "rate"),
        (lambda: nn.optimizers.for_model(nn.optimizers.SGD(), LAYOUT, []), "0 variables for a layout of 4"),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def three() -> Any:
    params, grad, *slots = state(4)
    return params, slots, grad
