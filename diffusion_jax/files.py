"""Files of a person's: paths as they write them, JSON that is checked when it is read, files that appear whole or not at
all, and folders that one program at a time writes into."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import DataError, DiffusionError

_TEMPORARY = ".tmp"
_LOCK = ".writer"


def user_path(path: str | os.PathLike) -> Path:
    """Return a path as a person wrote it, with ~ and ~NAME expanded where there is such a home."""
    return Path(os.path.expanduser(path))


def user_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of flags with ~ and ~NAME expanded in texts that begin so, and in lists of them.

    >>> user_paths({"num": 3, "out": "a~b"})
    {'num': 3, 'out': 'a~b'}
    """

    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(item) for item in value]
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value

    return {name: expanded(value) for name, value in values.items()}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to it when the block ends well and removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep_temporary(folder: Path) -> list[Path]:
    """Remove the temporary files that killed programs left in a folder, and return them; for the folder's only writer."""
    left = [path for path in folder.glob(f".*{_TEMPORARY}") if path.name.split(".")[-2].isdigit() and path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def write_json(path: Path, value: Any) -> None:
    """Write JSON data, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(
    path: Path,
    what: str,
    kind: type = dict,
    *,
    check: Callable[[Any], str | None] | None = None,
    mend: str = "restore it, or remove it",
    error: type[DiffusionError] = DataError,
) -> Any:
    """Return the JSON data of a file; whatever is wrong with it is one line.

    Args:
      what: what the file is, such as "the settings of the samples".
      kind: dict or list, what the data must be.
      check: data -> what is wrong with them, or None.
      mend: how to mend it, for the message.
      error: the error that is raised.

    Raises:
      DataError (or `error`): the file cannot be read, is no JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path}, {what}, cannot be read ({reason(cause)}): {mend}") from cause
    problem = None if isinstance(value, kind) else f"it holds a {type(value).__name__}, not a {kind.__name__}"
    problem = problem or (check and check(value))
    if problem:
        raise error(f"{path} is not {what}: {problem}: {mend}")
    return value


def read_json_lines(
    path: Path,
    what: str,
    *,
    check: Callable[[Any], str | None] | None = None,
    cut_short: Callable[[str], None] | None = None,
    error: type[DiffusionError] = DataError,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, object) of each line of a file that is not blank; a bad line is one error with file and number.

    Args:
      what: what a line is, such as "the metadata of an image".
      check: object -> what is wrong with it, or None.
      cut_short: told in words of a last line that a killed program did not finish, which is then left out and no error.

    Raises:
      DataError (or `error`): the file cannot be read, or a line is no JSON object or fails the check.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as cause:
                    if cut_short and not line.endswith("\n"):
                        cut_short(f"{path}, line {number}, was cut short, as by a killed program: it is left out")
                        return
                    raise error(f"{path}, line {number}: not JSON ({reason(cause)}); {what} is one object a line") from cause
                problem = None if isinstance(value, dict) else f"a {type(value).__name__}, where {what} is an object"
                problem = problem or (check and check(value))
                if problem:
                    raise error(f"{path}, line {number}: {problem}")
                yield number, value
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path} cannot be read ({reason(cause)})") from cause


def reason(cause: BaseException) -> str:
    """Return what an exception says, on one line of at most 200 characters."""
    text = cause.strerror if isinstance(cause, OSError) else str(cause)
    return " ".join((text or type(cause).__name__).split())[:200]


@contextlib.contextmanager
def only_writer(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder, made if need be, for one writer at a time; the lock of a dead program does not stand in the way.

    The lock is the operating system's, on the file .writer in the folder, which says who writes.

    Args:
      doing: what this program does there, such as "training"; told to whoever comes second.

    Raises:
      DataError: another program holds the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _LOCK, "a+")
    except OSError as cause:
        raise DataError(f"cannot write to {folder}: {reason(cause)}; choose a folder that can be written") from cause
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another program"
            raise DataError(f"{folder} is being written by {who}: wait for it, stop it, or choose another folder") from None
        except OSError:
            yield  # a file system without locks
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} ({doing})\n")
        file.flush()
        yield
        file.truncate(0)


def is_lock(path: Path) -> bool:
    """Return whether a file is the lock that `only_writer` leaves in a folder."""
    return path.name == _LOCK
