"""Where TensorFlow's checkpoints are: the one of a prefix, the latest of a directory, that of a SavedModel.

A directory's file `checkpoint` names the latest one and those before it. What it names is looked for in that
directory alone, whatever paths it has: TensorFlow writes absolute ones, of the machine that it ran on.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from storage.errors import CheckpointError, ConfigurationError, ObjectMissing
from storage.files import StoredFile, file_at, is_file
from storage.formats.tensor_bundle import open_bundle
from storage.store import open_store

_log = logging.getLogger(__name__)

STATE = "checkpoint"
SAVED_MODEL = "saved_model.pb"
_INDEX = ".index"
_VARIABLES = "variables/variables"
_FILE = re.compile(r"(?:\.index|\.data-\d{5}-of-\d{5})$")
"""What the names of a checkpoint's files have behind the prefix."""
_MAX_STATE_NBYTES = 16 << 20
_FIELD = re.compile(
    r'^\s*(model_checkpoint_path|all_model_checkpoint_paths)\s*:\s*"((?:[^"\\\n]|\\.)*)"', re.M
)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(.))", re.S)
_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """What a directory's file `checkpoint` says: the latest checkpoint, and all, the latest at the end."""

    latest: str
    all: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> CheckpointState | None:
        """Of the file's text; None where it names no checkpoint. Paths stay as they are."""
        found: dict[str, list[str]] = {}
        for field, quoted in _FIELD.findall(text):
            found.setdefault(field, []).append(_unquoted(quoted))
        latest = found.get("model_checkpoint_path")
        return None if not latest else cls(latest[-1], tuple(found.get("all_model_checkpoint_paths", ())))

    def text(self) -> str:
        """As the file has it."""
        lines = [("model_checkpoint_path", self.latest)]
        lines += [("all_model_checkpoint_paths", path) for path in self.all]
        return "".join(f'{field}: "{_quoted(path)}"\n' for field, path in lines)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of prefixes in the directory, the latest at the end, each once."""
        names = [_name(path) for path in (*self.all, self.latest)]
        return tuple(reversed(dict.fromkeys(name for name in reversed(names) if name)))


def bundle_at(url: str) -> str | None:
    """The prefix of what is at a prefix, or one of its files, in a SavedModel or, the latest, in a directory.

    None if there is none; a prefix is not opened.
    """
    for each in _prefixes(url):
        if is_file(each + _INDEX):
            return each
    try:
        return latest_in(url, verify=False)
    except ConfigurationError:
        return None


def is_prefix(url: str) -> bool:
    """Whether there is a checkpoint, or a SavedModel with variables, and not a directory of checkpoints."""
    return any(is_file(each + _INDEX) for each in _prefixes(url))


def is_saved_model(url: str) -> bool:
    """Whether there is a directory of TensorFlow's format SavedModel."""
    return is_file(f"{url.rstrip('/')}/{SAVED_MODEL}")


def latest_in(directory: str, state_file: str | None = None, *, verify: bool = True) -> str | None:
    """The prefix of the last good checkpoint of TensorFlow in a directory; None if there is none.

    It is the one that the file `checkpoint` names or, where that is missing or wrong, the one whose name is
    the last, numbers in names being numbers. What is damaged is skipped, with a warning to the log that says
    why; with `verify` every byte is read for that.
    """
    named = names_in(directory, state_file)
    for name in reversed(named):
        if _is_good(directory, name, verify=verify):
            return _within(directory, name)
    others = [name for name in _listed(directory) if name not in named]
    return next(
        (_within(directory, n) for n in reversed(others) if _is_good(directory, n, verify=verify)), None
    )


def names_in(directory: str, state_file: str | None = None) -> tuple[str, ...]:
    """What the directory's file `checkpoint` names, the latest at the end; () where there is none."""
    state = read_state(directory, state_file)
    return () if state is None else state.names


def read_state(directory: str, state_file: str | None = None) -> CheckpointState | None:
    """The directory's file `checkpoint`; None where there is none, or none that names a checkpoint."""
    file = _state_file(directory, state_file)
    try:
        nbytes = file.info().nbytes
        text = file.read(0, min(nbytes, _MAX_STATE_NBYTES)).decode(errors="replace")
    except ObjectMissing:
        return None
    return CheckpointState.parse(text)


def write_state(directory: str, state: CheckpointState) -> None:
    """Let the directory's file `checkpoint` say this."""
    _state_file(directory, None).write(state.text().encode())


def split(prefix: str) -> tuple[str, str]:
    """The directory of a prefix, and its name there."""
    file = file_at(prefix)
    return file.store.url, file.key


def _prefixes(url: str) -> tuple[str, str]:
    """Prefixes that a checkpoint here may have: that of the file, or of this name, and of a SavedModel."""
    prefix = _FILE.sub("", url.rstrip("/"))
    return prefix, f"{prefix}/{_VARIABLES}"


def _state_file(directory: str, name: str | None) -> StoredFile:
    return file_at(f"{directory.rstrip('/')}/{name or STATE}")


def _is_good(directory: str, name: str, *, verify: bool) -> bool:
    try:
        bundle = open_bundle(_within(directory, name))
        if verify:
            bundle.verify()
    except (CheckpointError, ConfigurationError) as error:
        _log.warning("%s is skipped: %s", _within(directory, name), error)
        return False
    return True


def _listed(directory: str) -> list[str]:
    """The names of all prefixes in a directory, in the order of their numbers."""
    keys = [key for key in open_store(directory).list() if key.endswith(_INDEX) and "/" not in key]
    names = [key.removesuffix(_INDEX) for key in keys]
    return sorted((name for name in names if name), key=_order)


def _order(name: str) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(name))]


def _within(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"


def _name(path: str) -> str:
    """The last part of a path; "" of one that can be no file in the directory."""
    name = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "" if name in (".", "..") or "\0" in name else name


def _quoted(text: str) -> str:
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode()
    )


def _unquoted(quoted: str) -> str:
    def plain(found: re.Match[bytes]) -> bytes:
        octal, hexadecimal, letter = found.groups()
        if octal is not None:
            return bytes([int(octal, 8) & 0xFF])
        return bytes([int(hexadecimal, 16)]) if hexadecimal is not None else _LETTERS.get(letter, letter)

    return _ESCAPE.sub(plain, quoted.encode()).decode(errors="replace")
