"""Which nodes are used, and who is where."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.membership import assign, choose, spans, spread, staff

ROOM = st.dictionaries(st.integers(0, 6), st.integers(0, 5), max_size=6)
WANTED = st.integers(0, 12)


@given(WANTED, ROOM, st.integers(1, 6), st.sets(st.integers(0, 6)))
def test_no_more_nodes_are_chosen_than_have_room_for_all_or_were_asked_for(
    wanted: int, room: dict[int, int], least: int, now: set[int]
) -> None:
    chosen = choose(wanted, room, least, now)
    assert chosen.items() <= room.items()
    assert list(chosen) == sorted(chosen)
    assert len(chosen) >= min(least, len(room), wanted)
    assert sum(chosen.values()) >= min(wanted, sum(room.values()))
    if len(chosen) > min(least, wanted):  # then the last one was needed
        last = max(chosen, key=lambda node: (node not in now, -room[node], node))
        assert sum(chosen.values()) - chosen[last] < wanted


@given(WANTED, ROOM, st.integers(1, 6), st.sets(st.integers(0, 6)))
def test_nodes_in_use_come_first_then_those_with_most_room(
    wanted: int, room: dict[int, int], least: int, now: set[int]
) -> None:
    chosen = choose(wanted, room, least, now)
    for node in chosen:
        for other in room.keys() - chosen.keys():
            assert (node not in now, -room[node]) <= (other not in now, -room[other])


@given(WANTED, ROOM)
def test_workers_are_spread_as_evenly_as_there_is_room(wanted: int, room: dict[int, int]) -> None:
    count = spread(wanted, room)
    assert count.keys() == room.keys()
    assert sum(count.values()) == min(wanted, sum(room.values()))
    assert all(count[node] <= room[node] for node in room)
    for node in room:
        for other in room:
            assert count[node] <= count[other] + 1 or count[other] == room[other]


@given(WANTED, ROOM, st.dictionaries(st.integers(0, 12), st.integers(0, 6), max_size=8))
def test_nobody_moves_who_need_not(wanted: int, room: dict[int, int], now: dict[int, int]) -> None:
    count = spread(wanted, room)
    ranks = assign(count, now)
    assert {node: [*ranks.values()].count(node) for node in room} == count
    assert list(ranks) == sorted(ranks)
    for rank, node in now.items():
        if rank in ranks:
            assert ranks[rank] == node, "a rank that leaves is not at once another's"
    for node in room:
        stayed = sum(ranks.get(rank) == node for rank, where in now.items() if where == node)
        assert stayed == min([*now.values()].count(node), count[node])


@given(WANTED, ROOM)
def test_an_assignment_is_its_own_continuation(wanted: int, room: dict[int, int]) -> None:
    count = spread(wanted, room)
    ranks = assign(count, {})
    assert list(ranks) == list(range(len(ranks)))
    assert assign(count, ranks) == ranks


@given(WANTED, st.integers(0, 3), ROOM, st.integers(1, 6), st.sets(st.integers(0, 6)))
def test_who_stands_by_takes_no_room_from_who_computes(
    wanted: int, standby: int, room: dict[int, int], least: int, now: set[int]
) -> None:
    active, staffed = staff(wanted, standby, room, least, now)
    assert sum(active.values()) == min(wanted, sum(room.values()))
    for node, count in active.items():
        assert staffed[node] == (min(room[node], count + standby) if count else 0)


@given(WANTED, ROOM, st.integers(1, 6), st.sets(st.integers(0, 6)))
def test_without_standby_only_those_are_there_who_compute(
    wanted: int, room: dict[int, int], least: int, now: set[int]
) -> None:
    active, staffed = staff(wanted, 0, room, least, now)
    assert active == staffed == spread(wanted, choose(wanted, room, least, now))


def test_more_nodes_are_used_where_one_has_no_room_for_who_stands_by() -> None:
    assert staff(4, 1, {0: 4, 1: 4}, 1, []) == ({0: 2, 1: 2}, {0: 3, 1: 3})
    assert staff(4, 1, {0: 4}, 1, []) == ({0: 4}, {0: 4}), "there are none"
    assert staff(3, 1, {0: 4, 1: 4}, 1, []) == ({0: 3}, {0: 4})


@given(st.integers(0, 40), st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any))
def test_spans_cover_everything_in_order_and_in_proportion(count: int, weights: list[int]) -> None:
    cuts = spans(count, weights)
    assert [low for low, _ in cuts] + [count] == [0, *(high for _, high in cuts)]
    for (low, high), weight in zip(cuts, weights, strict=True):
        assert low <= high
        assert abs((high - low) - count * weight / sum(weights)) <= 1
        assert weight or low == high
