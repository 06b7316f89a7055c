"""Lines of a spool file: what was printed, as a terminal would show it, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.lines import LONGEST, MARK, RAW, attempt_mark, first_attempt, parse, record, split_lines


@pytest.mark.parametrize(
    ("text", "lines", "rest"),
    [
        ("one\ntwo\nthr", ["one", "two"], "thr"),
        ("", [], ""),
        ("\n\n", ["", ""], ""),
        ("dos\r\n", ["dos"], ""),
        ("\r 10 %\r 20 %\r100 %\nnext", ["100 %"], "next"),
        ("\r 10 %\r 20 %", [], " 20 %"),
        ("\x1b[31mred\x1b[0m \x07\x1b]0;title\x07end\n", ["red end"], ""),
        ("tab\there\n", ["tab\there"], ""),
    ],
)
def test_whole_lines_and_what_is_left(text: str, lines: list[str], rest: str) -> None:
    assert split_lines(text) == (lines, rest)


def test_a_line_without_end_is_cut() -> None:
    lines, rest = split_lines("x" * (2 * LONGEST + 5))
    assert [len(line) for line in lines] == [LONGEST, LONGEST]
    assert rest == "xxxxx"
    assert [len(line) for line in split_lines("y" * (LONGEST + 1) + "\n")[0]] == [LONGEST, 1]


@given(st.text(max_size=80), st.sampled_from(["stdout", "stderr"]))
def test_a_record_says_what_it_was_made_of(text: str, stream: str) -> None:
    data = record(12.5, stream, text)
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    assert [*parse(data[:-1], 0.0)] == [(12.5, stream, text)]


def test_what_others_write_between_is_raw() -> None:
    mixed = b"last words" + record(1.0, "stdout", "a")[:-1] + attempt_mark(3)[:-1]
    assert [*parse(mixed, 7.0)] == [(7.0, RAW, "last words"), (1.0, "stdout", "a"), 3]
    assert [*parse(b"caf\xc3\xa9 \xff", 7.0)] == [(7.0, RAW, "café \N{REPLACEMENT CHARACTER}")]
    assert [*parse(b"", 7.0)] == []


@pytest.mark.parametrize("damaged", [b'[1.0, "stdout', b"{}", b'["a", 1, 2]', b"null", b""])
def test_a_record_that_was_cut_off_says_nothing(damaged: bytes) -> None:
    assert [*parse(MARK + damaged, 7.0)] == []


@given(st.binary(max_size=200))
def test_any_bytes_can_be_parsed(data: bytes) -> None:
    for said in parse(data, 0.0):
        assert isinstance(said, int) or len(said) == 3


def test_the_first_mark() -> None:
    assert first_attempt(record(1.0, "stdout", "a") + attempt_mark(4) + attempt_mark(5)) == 4
    assert first_attempt(record(1.0, "stdout", "\x1e4")) is None
