import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import catalog
from storage.catalog import Entry, directory_name, extend, is_valid, latest, next_attempt
from storage.errors import ConfigurationError
from storage.manifest import Base
from storage.retention import Retention, to_delete

NONCE = "0123456789abcdef"


def entry(step, attempt, status="complete", nonce=NONCE):
    return Entry(step, attempt, nonce, directory_name(step, attempt, nonce), 1, status)


@given(
    st.integers(0, 10**12 - 1), st.integers(0, 10**8 - 1), st.binary(min_size=4, max_size=16).map(bytes.hex)
)
def test_names_tell_what_they_were_made_from(step, attempt, nonce):
    assert catalog.parse_directory(directory_name(step, attempt, nonce)) == (step, attempt, nonce)
    for kind in ("", ".base", ".alive"):
        found = catalog.parse_attempt(catalog.attempt_key(attempt, nonce, kind))
        assert found == catalog.AttemptFile(attempt, nonce, kind)


@pytest.mark.parametrize(
    "bad", [(-1, 1, NONCE), (10**12, 1, NONCE), (1, 10**8, NONCE), (1, 1, "../x"), (1, 1, "")]
)
def test_a_directory_cannot_have_a_bad_name(bad):
    with pytest.raises(ValueError, match="make no directory name"):
        directory_name(*bad)


def test_names_sort_as_their_numbers_do():
    names = [directory_name(s, a, NONCE) for s, a in ((9, 2), (10, 1), (10, 3), (100, 1))]
    assert sorted(names) == names


def test_the_next_attempt_is_above_every_number_found_anywhere():
    assert next_attempt([]) == 1
    keys = [
        "run.json",
        catalog.attempt_key(3, NONCE),
        catalog.attempt_key(4, NONCE, ".alive"),
        f"{directory_name(100, 7, NONCE)}/params/c/0",
        catalog.journal_key(6, NONCE),
        "somebody/else/00000099-0123456789abcdef.json",
    ]
    assert next_attempt(keys) == 8
    assert next_attempt(keys[:3]) == 5


def test_only_the_newest_line_counts():
    chain = (Base(50, 1), Base(100, 3))
    assert is_valid(1, 50, chain, 5)
    assert not is_valid(1, 51, chain, 5)  # attempt 1 went on as a zombie
    assert not is_valid(2, 10, chain, 5)  # attempt 2 is on another branch
    assert is_valid(3, 100, chain, 5)
    assert is_valid(5, 10**6, chain, 5)
    assert not is_valid(6, 100, chain, 5)  # it has not recorded where it stands
    assert not is_valid(1, 1, None, None)


def test_a_chain_is_cut_where_the_new_attempt_starts():
    records = {1: (), 2: (Base(50, 1),), 3: (Base(50, 1), Base(80, 2))}
    assert extend(None, records) == ()
    assert extend(Base(90, 3), records) == (Base(50, 1), Base(80, 2), Base(90, 3))
    assert extend(Base(70, 2), records) == (Base(50, 1), Base(70, 2))
    assert extend(Base(40, 1), records) == (Base(40, 1),)
    assert extend(Base(60, 1), records) == (Base(60, 1),)  # on attempt 1's own line
    assert extend(Base(1, 9), records) is None
    assert extend(Base(1, 1), {}) is None


@given(st.data())
def test_losing_older_records_changes_no_chain_cut_from_the_newest(data):
    records = {}
    for number in range(1, data.draw(st.integers(2, 6))):
        base = None
        if records:
            earlier = data.draw(st.sampled_from(sorted(records)))
            base = Base(data.draw(st.integers(0, 100)), earlier)
        chain = extend(base, records)
        assert chain is not None
        assert [b.attempt for b in chain] == sorted({b.attempt for b in chain})
        records[number] = chain
    newest = max(records)
    base = Base(data.draw(st.integers(0, 100)), newest)
    assert extend(base, records) == extend(base, {newest: records[newest]})


def test_the_latest_is_the_highest_step_then_attempt_of_those_that_count():
    entries = [
        entry(100, 1),
        entry(100, 2),
        entry(50, 3),
        entry(200, 1, "invalid"),
        entry(300, 3, "incomplete"),
    ]
    assert latest(entries) == entries[1]
    assert latest(entries[3:]) is None


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3), st.booleans()), max_size=12), st.integers(1, 5)
)
def test_the_newest_are_never_deleted_nor_what_does_not_count(specs, keep):
    entries = [
        entry(step, attempt, "complete" if good else "invalid", f"{i:016x}")
        for i, (step, attempt, good) in enumerate(specs)
    ]
    good = sorted((e for e in entries if e.status == "complete"), key=lambda e: e.order)
    deleted = to_delete(entries, Retention(keep=keep))
    assert list(deleted) == good[: max(0, len(good) - keep)]
    if deleted:
        assert deleted[0] not in to_delete(entries, Retention(keep=keep), {deleted[0].directory})


def test_keeping_none_is_refused():
    with pytest.raises(ConfigurationError, match="keep=0"):
        Retention(keep=0)
