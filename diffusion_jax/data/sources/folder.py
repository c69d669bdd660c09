"""A folder of a user's own images, in classes or not, with captions or not."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diffusion_jax.data.files import ENDINGS, listing, load_image
from diffusion_jax.data.sources.base import SPLITS, Example
from diffusion_jax.data.sources.text import Embeddings
from diffusion_jax.errors import DataError, check_choice, nearest
from diffusion_jax.files import read_json_lines, reason, user_path
from diffusion_jax.registry import register
from diffusion_jax.values import Natural, Probability

logger = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv")
_FIELDS = {"file_name": str, "label": str | int, "caption": str}
_LISTED = 10_000  # files that an identity lists one by one


@register("source", "folder")
@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Reads images below a directory: png, jpeg, webp, bmp, gif, tiff (of several frames or pages the first).

    Classes are the first sub-folders, in alphabetical order, or the labels of a metadata file (metadata.jsonl or
    metadata.csv in the directory, with the fields file_name and label, caption or both), which then says which images
    belong. Without either there are no classes. Hidden files and folders are left out.

    Args:
      path: the directory.
      split: "train" or "test", the held-out images.
      test_fraction: of the images held out.
      stratified: hold out of each class its share, to within one image; where images are added or removed, a few others may
        change sides. False splits by the hash of each image's relative path and `seed` alone, as release 0.1.0 did.
      seed: of the split.
      classes: whether sub-folders are classes; False takes all images without classes.
      verify: decode every image once at the start, so that a bad one is found before training.
      skip_corrupt: leave bad images out (they are counted in `skipped` and logged) instead of stopping.
      embeddings: text embeddings of the images, made beforehand: a file or folder as `Embeddings` reads
        it, with names relative to `path`.

    Raises:
      DataError: no such directory, no images, images beside the folders of classes, a bad image, a metadata file that does not
        fit.
    """

    path: str
    split: str = "train"
    test_fraction: Probability = 0.1
    stratified: bool = True
    seed: Natural = 0
    classes: bool = True
    verify: bool = True
    skip_corrupt: bool = False
    embeddings: str | None = None

    name = "folder"

    def __post_init__(self) -> None:
        check_choice("source 'folder': split", self.split, SPLITS)
        root = user_path(self.path)
        if not root.is_dir():
            raise DataError(f"there is no directory {str(root)!r}: set data.source.path to a folder of images")
        every = _metadata_rows(root) or _plain_rows(root, self.classes)
        held_out = (_shares if self.stratified else _thresholded)(every, self.test_fraction, self.seed)
        rows = [row for row in every if (row["file_name"] in held_out) == (self.split == "test")]
        if self.verify or self.skip_corrupt:
            rows, skipped = _intact(root, rows, self.skip_corrupt)
        else:
            skipped = 0
        if not rows:
            raise DataError(f"no images are left in the split {self.split!r} of {str(root)!r}; change test_fraction")
        texts = Embeddings(self.embeddings) if self.embeddings else None
        if texts is not None:
            texts.check(row["file_name"] for row in rows)
        object.__setattr__(self, "_texts", texts)
        object.__setattr__(self, "_root", root)
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_every", every)
        object.__setattr__(self, "skipped", skipped)
        object.__setattr__(self, "class_names", tuple(sorted({row["label"] for row in every if "label" in row})))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def identity(self) -> dict[str, Any]:
        """Return what the images of both splits are: how many of each class, and a digest of names and sizes of the files.

        Up to 10,000 files are listed with their sizes in bytes. No image is opened.

        Raises:
          DataError: a file that is gone.
        """
        return dict(self._identity)

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        sizes, digest = {}, hashlib.sha256()
        for row in self._every:
            try:
                sizes[row["file_name"]] = os.stat(self._root / row["file_name"]).st_size
            except OSError as error:
                raise DataError(f"cannot read {self._root / row['file_name']}: {error.strerror}") from error
            digest.update(repr((sorted(row.items()), sizes[row["file_name"]])).encode(errors="surrogateescape"))
        counts = Counter(row["label"] for row in self._every if "label" in row)
        described = {"images": len(sizes), "classes": dict(sorted(counts.items())), "digest": digest.hexdigest()}
        return described | ({"files": sizes} if len(sizes) <= _LISTED else {})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[index]
        example: Example = {"image": load_image(self._root / row["file_name"])}
        if "label" in row:
            example["label"] = self.class_names.index(row["label"])
        if "caption" in row:
            example["caption"] = row["caption"]
        return example if self._texts is None else {**example, **self._texts[row["file_name"]]}


def _hash(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()[:8], "big")


def _thresholded(rows: list[dict[str, str]], fraction: float, seed: int) -> set[str]:
    """The names of the images held out: those with a low hash."""
    return {row["file_name"] for row in rows if _hash(seed, row["file_name"]) < fraction * 2**64}


def _shares(rows: list[dict[str, str]], fraction: float, seed: int) -> set[str]:
    """The names of the images held out: of each class those with the lowest hashes, and at least one image in all."""
    classes: dict[str, set[str]] = {}
    for row in rows:
        classes.setdefault(row.get("label", ""), set()).add(row["file_name"])
    total = sum(map(len, classes.values()))
    wanted = min(max(1, round(fraction * total)), total - 1) if fraction else 0
    held: set[str] = set()
    seen = 0
    for label in sorted(classes):
        before, seen = round(wanted * seen / total), seen + len(classes[label])
        order = sorted(classes[label], key=lambda name: (_hash(seed, name), name))
        held.update(order[: round(wanted * seen / total) - before])
    return held


def _plain_rows(root: Path, classes: bool) -> list[dict[str, str]]:
    """Every image below a directory; its class is the first sub-folder, if there are any and they are to be classes."""
    found, others = listing(root)
    left_out = ", ".join(f"{count} of {ending}" for ending, count in others.most_common(5))
    if not found:
        beside = f" (other files there: {left_out})" if left_out else ""
        raise DataError(f"no images in {str(root)!r}: looked for {', '.join(ENDINGS)} in it and in its sub-folders{beside}")
    if left_out:
        logger.warning("Files in %s that are not images read here are left out: %s.", root, left_out)
    paths = [path.relative_to(root) for path in found]
    outside = [path for path in paths if len(path.parts) == 1]
    if classes and 0 < len(outside) < len(paths):
        raise DataError(
            f"{root} has images in sub-folders, which are classes, and {len(outside)} beside them, such as {outside[0]}: move "
            "them into a class or away, or set data.source.classes to False for images without classes"
        )
    labelled = classes and not outside
    return [{"file_name": path.as_posix(), **({"label": path.parts[0]} if labelled else {})} for path in paths]


def _metadata_rows(root: Path) -> list[dict[str, str]]:
    """The rows of a metadata file, checked; empty where there is none."""
    found = [root / name for name in METADATA if (root / name).exists()]
    if not found:
        return []
    if len(found) > 1:
        raise DataError(f"{root} has both {' and '.join(METADATA)}; keep one")
    problem = functools.partial(_row_problem, root)
    if found[0].suffix == ".csv":
        read = _csv_rows(found[0], problem)
    else:
        read = (row for _, row in read_json_lines(found[0], "the metadata of an image", check=problem))
    rows = [{field: str(value) for field, value in row.items() if value not in (None, "")} for row in read]
    if not rows:
        raise DataError(f"{found[0]} has no rows: list the images in it, or remove it")
    for row in rows:
        row["file_name"] = os.path.normpath(row["file_name"])
    for field in ("label", "caption"):
        having = sum(field in row for row in rows)
        if 0 < having < len(rows):
            raise DataError(f"{found[0]}: {len(rows) - having} of {len(rows)} rows have no {field}; give it to all or none")
    return sorted(rows, key=lambda row: row["file_name"])


def _row_problem(root: Path, row: Mapping[Any, Any]) -> str | None:
    """What is wrong with a row of metadata; None if nothing is."""
    for field, value in row.items():
        if field is None:
            return f"more columns than the first line names: {value!r}"
        if field not in _FIELDS:
            return f"unknown field {field!r}{nearest(field, _FIELDS)} (known: {', '.join(_FIELDS)})"
        if value is not None and (not isinstance(value, _FIELDS[field]) or isinstance(value, bool)):
            return f"{field} must be a text, got {value!r}"
    name = row.get("file_name") or ""
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == "..":
        return f"file_name {name!r} leaves the folder {root}: names are relative to it"
    return None if os.path.isfile(root / name) else f"file_name {name!r} is not a file in {root}"


def _csv_rows(path: Path, problem: Any) -> Iterator[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if wrong := problem(row):
                    raise DataError(f"{path}, line {reader.line_num}: {wrong}")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table of images ({reason(error)})") from error


def _intact(root: Path, rows: list[dict[str, str]], skip: bool) -> tuple[list[dict[str, str]], int]:
    """The rows whose image decodes, and how many do not; unless `skip`, the first bad one is an error."""

    def problem(row: dict[str, str]) -> DataError | None:
        try:
            load_image(root / row["file_name"])
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, rows))
    bad = [error for error in problems if error is not None]
    if bad and not skip:
        more = f" ({len(bad) - 1} more images cannot be read)" if len(bad) > 1 else ""
        raise DataError(f"{bad[0]}{more}")
    for error in bad:
        logger.warning("Skipped: %s", error)
    return [row for row, error in zip(rows, problems, strict=True) if error is None], len(bad)
