"""What programs wrote into a folder, with checksums: what lies there is theirs, or it is refused before any work."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diffusion_jax import identity
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.files import read_json, read_json_lines, replacing, sweep_temporary, write_json

NAME = "manifest.jsonl"
_LINE = "a line of a manifest"
_LEFT_BY_DESKTOPS = ("Thumbs.db", "desktop.ini")

Line = dict[str, Any]
"""Of a file: {"file", "sha256"} and whatever its writer remembers with it."""


class Manifest:
    """The files that a program wrote into a folder, a line each in manifest.jsonl.

    The first line has the digest of the settings, which lie beside it in full. A line is written before its file takes its
    name. So at whatever moment a program is killed, a file without a line of its checksum is somebody else's, and a line
    without a file is a file that is to be made again. Hidden files are passed over.

    Args:
      folder: where; it need not exist.
      record: name of the file of settings, such as "samples.json"; it says which program's folder this is.
    """

    def __init__(self, folder: Path, record: str) -> None:
        self.folder, self.record = folder, record
        self._lines: list[Line] = []
        self._intact: dict[str, Line] | None = None
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """Where the manifest lies."""
        return self.folder / NAME

    def check(self) -> None:
        """Read the manifest, and look at every name in the folder; nothing is written.

        Raises:
          DataError: the folder holds what the manifest does not list, or what another program or an earlier version wrote.
        """
        names = list(_files(self.folder)) if self.path.exists() else itertools.islice(_files(self.folder), 1)
        self._lines = read_lines(self.path) if self.path.exists() else []  # afterwards: lines precede files
        if self._lines and self._lines[0]["record"] != self.record:
            raise DataError(f"{self.folder} belongs to {self._lines[0]['record']}, not {self.record}: choose another folder")
        if not self._lines and (self.folder / self.record).exists():
            raise DataError(
                f"{self.folder} was begun by an earlier version, without {NAME}, so that nobody can tell what in it is whose: "
                "choose another folder, or remove this one to draw anew"
            )
        known = {NAME, self.record, *(line["file"] for line in self._lines if "file" in line)} if self._lines else ()
        foreign = next((name for name in names if name not in known), None)
        if foreign is not None:
            raise DataError(f"{self.folder} holds {foreign}, which this program did not write there: choose another folder")

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Make the folder that of these settings, or find that it is; for the folder's only writer.

        Raises:
          ConfigError: the folder is one of other settings; the difference is shown.
          DataError: as for `check`.
        """
        self.check()
        recorded, head = self.folder / self.record, {"record": self.record, "settings": identity.digest(settings, 32)}
        if self._lines:
            before = read_json(recorded, "the settings of these samples") if recorded.exists() else settings
            changes = identity.differences(before, settings)
            if changes or self._lines[0] != head:
                changes = changes or [f"{self.record} is not what it was"]
                raise ConfigError(
                    f"{self.folder} holds samples of other settings: {'; '.join(changes)}; choose another folder, or remove it"
                )
            _cut_torn(self.path)
        for folder in (self.folder, *(entry for entry in self.folder.iterdir() if entry.is_dir())):
            sweep_temporary(folder)
        if not self._lines:
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(head) + "\n")
            self._lines = [head]
        if not recorded.exists():
            write_json(recorded, settings)

    def scan(self) -> dict[str, Line]:
        """Read the files that are listed, and return the lines of those that are there, by name.

        Raises:
          DataError: a file is not as it was written.
        """
        wanted: dict[str, dict[str, Line]] = {}
        for line in self._lines:
            if "file" in line:
                wanted.setdefault(line["file"], {})[line["sha256"]] = line
        there = [name for name in _files(self.folder) if name in wanted]
        with ThreadPoolExecutor() as pool:
            sums = list(pool.map(lambda name: checksum(self.folder / name), there))
        self._intact = {}
        for name, found in zip(there, sums, strict=True):
            if found not in wanted[name]:
                raise DataError(
                    f"{self.folder / name} is not as it was written (another checksum than in {NAME}): "
                    "remove it, and it is made again, or choose another folder"
                )
            self._intact[name] = wanted[name][found]
        return self._intact

    @property
    def intact(self) -> dict[str, Line]:
        """The lines of the files that are there, by name: those of the last `scan`, and those put since."""
        return self.scan() if self._intact is None else self._intact

    def put(self, files: Iterable[tuple[str, bytes, Mapping[str, Any]]]) -> None:
        """Write files, each whole or not at all.

        Args:
          files: (name below the folder, content, what to remember with it).
        """
        lines = []
        with contextlib.ExitStack() as renamed:
            for name, content, more in files:
                line = {"file": name, **more, "sha256": hashlib.sha256(content).hexdigest()}
                if self._intact is not None and self._intact.get(name) == line:
                    continue
                renamed.enter_context(replacing(self.folder / name)).write_bytes(content)
                lines.append(line)
            self._append(lines)
        if self._intact is not None:
            self._intact.update((line["file"], line) for line in lines)

    @contextlib.contextmanager
    def putting(self, name: str, more: Mapping[str, Any]) -> Iterator[Path]:
        """Give a temporary path for a file too large for memory, which takes its name when the block ends well."""
        with replacing(self.folder / name) as temporary:
            yield temporary
            line = {"file": name, **more, "sha256": checksum(temporary)}
            self._append([line])
        if self._intact is not None:
            self._intact[name] = line

    def complete(self, count: int) -> None:
        """Note that the first `count` samples and all that belongs to them are there."""
        if self._lines[-1] != {"complete": count}:
            self._append([{"complete": count}])

    def _append(self, lines: list[Line]) -> None:
        """Add lines; where the disk is full none of them remains."""
        if not lines:
            return
        with self._lock:
            end = self.path.stat().st_size
            try:
                with open(self.path, "ab") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            except OSError:
                os.truncate(self.path, end)
                raise
            self._lines += lines


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a manifest; the first says what its folder is of.

    Raises:
      DataError: the file cannot be read, or is no manifest; the message names the line.
    """
    try:
        lines = [line for _, line in read_json_lines(path, _LINE, check=_problem, cut_short=_pass_over)]
    except DataError as error:
        raise DataError(f"{error}: restore it, or choose another folder") from error
    if not lines or not {"record", "settings"} <= lines[0].keys():
        raise DataError(f"{path} is no manifest of samples: choose another folder")
    return lines


def completed(folder: Path, record: str) -> tuple[int, dict[str, set[str]]]:
    """Return (how many samples a folder holds, the checksums that each file may have); nothing but the manifest is read.

    Args:
      record: name of its file of settings.

    Raises:
      DataError: the samples are not complete, the settings are others than they were drawn with, or were recorded by an
        earlier version.
    """
    if not (folder / NAME).exists():
        raise DataError(
            f"{folder} is of an earlier version, without {NAME}: draw anew into another folder, or name its samples.npz, "
            "or a folder of its numbered images alone"
        )
    lines, sums = read_lines(folder / NAME), {}
    if lines[0]["settings"] != identity.digest(read_json(folder / record, "the settings of these samples"), 32):
        raise DataError(f"{folder / record} is not what the samples beside it were drawn with: restore it, or draw anew")
    for line in lines:
        if "file" in line:
            sums.setdefault(line["file"], set()).add(line["sha256"])
    if "complete" not in lines[-1]:
        raise DataError(f"sampling into {folder} was interrupted: give the same sample command again to complete it")
    return lines[-1]["complete"], sums


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pass_over(_: str) -> None:
    """A line that was cut short is of a file that has not its name yet."""


def _problem(line: Line) -> str | None:
    """What is wrong with a line of a manifest."""
    kinds = {"file": str, "sha256": str, "record": str, "settings": str, "first": int, "count": int, "complete": int}
    wrong = next((name for name, kind in kinds.items() if name in line and type(line[name]) is not kind), None)
    if wrong or ("file" in line) != ("sha256" in line):
        return f"{wrong or 'sha256'!r} is missing or of another kind"
    if line.get("first", 0) < 0 or line.get("count", 1) < 1:
        return "a file of no samples"
    return None


def _files(folder: Path) -> Iterator[str]:
    """The names of the files below a folder, in order; what is hidden is passed over."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        below = "" if root == os.fspath(folder) else f"{os.path.relpath(root, folder)}/"
        for name in sorted([*files, *links]):
            if not name.startswith(".") and name not in _LEFT_BY_DESKTOPS:  # a hidden one is the lock
                yield below + name


def _cut_torn(path: Path) -> None:
    """Cut off a last line that a killed program did not finish."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
