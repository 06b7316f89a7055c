"""What is secret is hidden in whatever form it stands; what is not stays."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from urllib.parse import quote

import pytest

from workers.redaction import FORWARD, HIDDEN, RedactedStream, Redactor, secrets_of, without_credentials

CANARY = 'c4n4ry/+"x\\y=z'


@pytest.mark.parametrize(
    "written",
    [
        CANARY,
        quote(CANARY, safe=""),
        json.dumps({"a": CANARY}),
        repr(CANARY),
        base64.b64encode(CANARY.encode()).decode(),
    ],
)
def test_a_value_is_hidden_however_it_is_written(written: str) -> None:
    assert HIDDEN in Redactor([CANARY]).text(f"see {written} here")
    assert "c4n4ry" not in Redactor([CANARY]).text(f"see {written} here")
    assert "YzRuNHJ5" not in Redactor([CANARY]).text(f"see {written} here")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("s3://user:pw@host/b", f"s3://user:{HIDDEN}@host/b"),
        ("https://h/x?sig=abc%3D&sv=1", f"https://h/x?sig={HIDDEN}&sv=1"),
        ("https://h/x?X-Amz-Signature=ab12&a=b", f"https://h/x?X-Amz-Signature={HIDDEN}&a=b"),
        (
            "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=aa==;x=y",
            f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={HIDDEN};x=y",
        ),
        ("host=db;Password=hunter2", f"host=db;Password={HIDDEN}"),
    ],
)
def test_credentials_of_urls_and_connection_strings_are_hidden(text: str, hidden: str) -> None:
    assert without_credentials(text) == hidden


@pytest.mark.parametrize(
    "text", ["sftp://me@host/x", "step=3 loss=0.5", "monkey=3", "https://h/x?page=2", "a:b@c", "file:///a#3"]
)
def test_what_is_not_secret_stays(text: str) -> None:
    assert Redactor(["abc"]).text(text) == text


def test_variables_are_secret_by_their_names() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "1",
        "GITHUB_TOKEN": "2",
        "DB_PASSWORD": "3",
        "AZURE_STORAGE_CONNECTION_STRING": "4",
        "PLAIN": "5",
        "PASSED": "6",
        "KEYBOARD": "7",
    }
    assert sorted(secrets_of(environment, ["PASSED"])) == ["1", "2", "3", "4", "6"]
    environment[FORWARD] = "PLAIN,PASSED,GONE"
    assert sorted(secrets_of(environment)) == ["1", "2", "3", "4", "5", "6"]


def test_json_values_are_redacted_in_depth_and_the_rest_is_kept() -> None:
    value = {"a": [CANARY, 1, None], "b": {"c": f"x {CANARY}"}, "d": 0.5}
    assert Redactor([CANARY]).value(value) == {"a": [HIDDEN, 1, None], "b": {"c": f"x {HIDDEN}"}, "d": 0.5}


def test_a_stream_hides_what_is_printed_on_it() -> None:
    under = io.StringIO()
    stream = RedactedStream(under, Redactor([CANARY]))
    print("before", CANARY, file=stream)
    stream.writelines([CANARY, "\n"])
    assert under.getvalue() == f"before {HIDDEN}\n{HIDDEN}\n"
    assert not stream.isatty()


PASSWORD, URL = "opensesame", "https://me:not-known@host/x?sig=neither-is-this"


@pytest.mark.parametrize("text", [f"my {PASSWORD} is {PASSWORD}.\n", f"see {URL} or {URL}&a=1 there\n"])
def test_a_secret_in_several_writes_does_not_slip_out(text: str) -> None:
    redactor = Redactor([PASSWORD])
    for one in range(len(text)):
        for other in range(one, len(text)):
            under = io.StringIO()
            stream = RedactedStream(under, redactor)
            for piece in (text[:one], text[one:other], text[other:]):
                stream.write(piece)
                stream.flush()
            assert under.getvalue() == redactor.text(text)
            assert HIDDEN in under.getvalue()


def test_letter_by_letter_nothing_slips_out_and_nothing_is_lost() -> None:
    redactor = Redactor([PASSWORD, "sesame-street", "-street-9"])
    for text in (
        f"{PASSWORD}-street",
        "open sesame-street-9",
        "sesame-stree",
        f"{PASSWORD[:-1]}\nx{PASSWORD}",
    ):
        under = io.StringIO()
        stream = RedactedStream(under, redactor)
        for letter in text:
            stream.write(letter)
        stream.release()
        assert under.getvalue() == redactor.text(text)


def test_what_cannot_become_a_secret_is_written_at_once() -> None:
    under = io.StringIO()
    stream = RedactedStream(under, Redactor([PASSWORD]))
    for text in ("50 %", "\r60 %", "go on? [y] ", "op", "o", f"{PASSWORD}"):
        stream.write(text)
    assert under.getvalue() == f"50 %\r60 %go on? [y] opo{HIDDEN}"
    stream.write("open")
    assert under.getvalue().endswith(HIDDEN)  # these wait
    stream.write("\n")
    assert under.getvalue().endswith(f"{HIDDEN}open\n")


def test_bytes_are_redacted_as_well() -> None:
    under = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    stream = RedactedStream(under, Redactor([PASSWORD]))
    for piece in ("ü ".encode()[:1], "ü ".encode()[1:], b"opense", b"same ", b"more"):
        stream.buffer.write(piece)
    stream.buffer.flush()
    assert under.buffer.getvalue().decode() == f"ü {HIDDEN} more"  # type: ignore[attr-defined]


def test_the_end_of_a_line_that_waits_is_written_when_the_process_ends() -> None:
    script = (
        "import os, sys\n"
        "from workers.output import keep_secret, redact_output\n"
        "redact_output()\n"
        "keep_secret(['PLAIN'])\n"
        "assert os.environ['HOLDFAST_FORWARD'] == 'PLAIN'\n"
        "sys.stdout.write('a swordfi')\n"
        "sys.stderr.write('swordf'); sys.stderr.flush(); sys.stderr.write('ish')\n"
    )
    environment = {**os.environ, "PLAIN": "swordfish"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("a swordfi", HIDDEN)
