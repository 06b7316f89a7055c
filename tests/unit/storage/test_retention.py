import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import catalog
from storage.catalog import Entry, directory_name
from storage.errors import ConfigurationError
from storage.manifest import Base, Manifest
from storage.retention import Retention, to_delete
from storage.run_directory import RunDirectory
from storage.store import open_store
from storage.testing import MemoryStore
from tests.unit.storage.states import new_run, save

NONCE = "0123456789abcdef"


def entry(step, hours=0.0, loss=None, status="complete"):
    """A checkpoint that was committed so many hours into the day."""
    minutes = round(hours * 60)
    manifest = Manifest(
        run_id="r",
        attempt=1,
        nonce=NONCE,
        step=step,
        parent=None,
        arrays=(),
        objects={},
        state_digest="0" * 64,
        counters={},
        metrics={} if loss is None else {"loss": loss},
        fingerprint={},
        versions={},
        created_at=f"2026-01-{1 + minutes // 1440:02d}T{minutes // 60 % 24:02d}:{minutes % 60:02d}:00+00:00",
    )
    return Entry(step, 1, NONCE, directory_name(step, 1, NONCE), 1, status, manifest=manifest)


def kept(entries, **rules):
    gone = {e.step for e in to_delete(entries, Retention(**rules))}
    return [e.step for e in entries if e.step not in gone]


def test_the_newest_are_kept():
    assert kept([entry(step) for step in range(1, 8)], keep=2) == [6, 7]
    assert kept([entry(step) for step in range(1, 8)], keep=None) == [*range(1, 8)]


def test_multiples_of_a_number_of_steps_are_kept_too():
    assert kept([entry(step) for step in range(1, 11)], keep=1, keep_every_steps=4) == [4, 8, 10]


def test_one_in_so_many_hours_is_kept_too():
    entries = [entry(step, hours=step * 0.5) for step in range(1, 11)]
    assert kept(entries, keep=1, keep_every_hours=2) == [1, 5, 9, 10]


def test_a_clock_that_goes_back_costs_no_more_than_its_jump():
    hours = [0, 1, 2, 0.5, 1.5, 2.5, 3.5, 4.5]
    entries = [entry(step, hours=h) for step, h in enumerate(hours, 1)]
    assert kept(entries, keep=1, keep_every_hours=2) == [1, 3, 8]


@pytest.mark.parametrize("hours", [0, -1, math.inf, 1e300, True, "1"])
def test_hours_that_no_clock_shows_are_refused(hours):
    with pytest.raises(ConfigurationError, match=r"keep_every_hours=.*give a number above 0"):
        Retention(keep_every_hours=hours)


def test_the_best_are_kept_too_and_not_a_number_is_not_among_them():
    losses = [3.0, 1.0, math.nan, 2.0, None, 5.0, math.inf]
    entries = [entry(step, loss=loss) for step, loss in enumerate(losses, 1)]
    assert kept(entries, keep=1, keep_best=2) == [2, 4, 7]
    assert kept(entries, keep=1, keep_best=1, best_mode="max") == [7]
    assert kept(entries, keep=1, keep_best=2, best_mode="max") == [6, 7]
    assert kept(entries, keep=1, keep_best=3, best_metric="accuracy") == [7]


@given(
    st.lists(st.tuples(st.floats(0, 100), st.none() | st.floats()), max_size=12),
    st.integers(1, 4),
    st.none() | st.integers(1, 5),
    st.none() | st.floats(0.5, 30),
    st.none() | st.integers(1, 4),
    st.data(),
)
def test_every_rule_keeps_what_it_names(committed, keep, steps, hours, best, data):
    entries = [entry(step, *facts) for step, facts in enumerate(committed, 1)]
    protected = {e.directory for e in entries if data.draw(st.booleans())}
    rules = Retention(keep=keep, keep_every_steps=steps, keep_every_hours=hours, keep_best=best)
    gone = to_delete(entries, rules, protected)
    assert gone == sorted(gone, key=lambda e: e.order)
    left = [e for e in entries if e not in gone]
    assert not {e.directory for e in gone} & protected
    assert left[-keep:] == entries[-keep:]
    assert all(e in left for e in entries if steps and e.step % steps == 0)
    losses = sorted(e.manifest.metrics["loss"] for e in entries if not math.isnan(_loss(e)))
    if best and losses:
        there = sorted(_loss(e) for e in left if not math.isnan(_loss(e)))
        assert there[: min(best, len(losses))] == losses[:best]
    alone = to_delete(entries, Retention(keep=keep), protected)
    assert {e.directory for e in gone} <= {e.directory for e in alone}  # a rule more keeps, never deletes


def _loss(each):
    return each.manifest.metrics.get("loss", math.nan)


@pytest.mark.parametrize(
    "rules",
    [
        {"keep": 0},
        {"keep": True},
        {"keep_every_steps": 0},
        {"keep_every_hours": 0},
        {"keep_every_hours": math.inf},
        {"keep_best": -1},
        {"best_mode": "best"},
        {"best_metric": ""},
    ],
)
def test_nonsense_is_refused_by_name(rules):
    with pytest.raises(ConfigurationError, match=next(iter(rules))):
        Retention(**rules)


@pytest.fixture(params=["memory", "local"])
def run(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else open_store(str(tmp_path / "run"))
    return new_run(store)


def steps(run):
    return [e.step for e in RunDirectory(run.store).entries() if e.status in ("complete", "latest")]


def test_pinned_verified_and_base_outlive_retention(run):
    first = run.claim_attempt()
    run.record_base(first, None)
    made = {step: save(run, first, step)[0] for step in range(1, 7)}
    run.pin(made[1])
    run.mark_verified(made[2])
    run.mark_verified(made[3])
    second = run.claim_attempt()
    run.record_base(second, Base(4, 1))
    for step in (5, 6, 7):
        save(run, second, step)
    run.retain(Retention(keep=1), second)
    assert steps(run) == [1, 3, 4, 7]
    run.unpin(made[1])
    assert run.pins() == set()
    run.retain(Retention(keep=1), second)
    assert steps(run) == [3, 4, 7]


def test_one_who_was_superseded_deletes_nothing(run):
    first = run.claim_attempt()
    run.record_base(first, None)
    for step in (1, 2, 3):
        save(run, first, step)
    run.claim_attempt()
    assert run.retain(Retention(keep=1), first) == []
    assert steps(run) == [1, 2, 3]


def test_quarantine_takes_a_checkpoint_out_of_the_line_and_is_never_collected(run):
    first = run.claim_attempt()
    run.record_base(first, None)
    made = {step: save(run, first, step)[0] for step in (1, 2)}
    run.quarantine(made[2], "a byte was flipped")
    assert run.latest().step == 1
    assert next(run.candidates()).step == 1
    run.record_base(run.claim_attempt(), Base(1, 1))
    assert run.collect(0, invalid=True) == []
    (found,) = [e for e in run.entries() if e.step == 2]
    assert (found.status, found.reason) == ("quarantined", "it was found damaged")


def test_only_what_earlier_attempts_left_unfinished_is_collected(run):
    first = run.claim_attempt()
    run.record_base(first, None)
    save(run, first, 1)
    line, _ = save(run, first, 2)
    left = directory_name(3, 1, NONCE)
    run.store.write(f"{left}/params/c/0", [b"half"])
    damaged, _ = save(run, first, 4)
    run.store.delete([f"{damaged}/params/c/0"])
    assert run.collect(0) == []  # of the attempt that decides
    second = run.claim_attempt()
    assert run.collect(0) == []  # the second has not said where it stands
    run.record_base(second, Base(1, 1))
    own = directory_name(9, 2, NONCE)
    run.store.write(f"{own}/params/c/0", [b"being written"])
    assert run.collect(3600) == []
    assert [g.directory for g in run.collect(0, dry_run=True)] == [left]
    assert run.store.list(left)
    (garbage,) = run.collect(0)
    assert (garbage.directory, garbage.nbytes) == (left, 4)
    assert "never committed" in garbage.reason
    assert not run.store.list(left)
    assert [g.directory for g in run.collect(0, invalid=True)] == [line]
    assert run.store.list(own)
    assert run.store.list(damaged)  # evidence


def test_records_of_what_is_gone_go_too(run):
    first = run.claim_attempt()
    run.record_base(first, None)
    one, _ = save(run, first, 1)
    save(run, first, 2)
    run.mark_verified(one)
    run.pin(one)
    run.store.delete_directory(one)
    run.record_base(run.claim_attempt(), Base(2, 1))
    run.collect(0)
    assert run.pins() == run.on_record(catalog.VERIFIED) == set()
