"""A folder of a user's own images, in classes or not, with captions or not."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from diffusion_jax.data.files import ENDINGS, image_files, load_image
from diffusion_jax.data.sources.base import SPLITS, Example
from diffusion_jax.data.sources.text import Embeddings
from diffusion_jax.errors import ConfigError, DataError, check_choice, nearest
from diffusion_jax.registry import register

logger = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv")
_FIELDS = ("file_name", "label", "caption")


@register("source", "folder")
@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Reads images below a directory: png, jpeg, webp.

    Classes are the first sub-folders, in alphabetical order, or the labels of a metadata file (metadata.jsonl or
    metadata.csv in the directory, with the fields file_name and label, caption or both), which then says which images
    belong. Without either there are no classes.

    Args:
      path: the directory.
      split: "train" or "test"; an image's split depends on its relative path and `seed` alone.
      test_fraction: of the images held out.
      seed: of the split.
      verify: decode every image once at the start, so that a bad one is found before training.
      skip_corrupt: leave bad images out (they are counted in `skipped` and logged) instead of stopping.
      embeddings: text embeddings of the images, made beforehand: a file or folder as `Embeddings` reads
        it, with names relative to `path`.

    Raises:
      DataError: no such directory, no images, a bad image, a metadata file that does not fit.
    """

    path: str
    split: str = "train"
    test_fraction: float = 0.1
    seed: int = 0
    verify: bool = True
    skip_corrupt: bool = False
    embeddings: str | None = None

    name = "folder"

    def __post_init__(self) -> None:
        check_choice("source 'folder': split", self.split, SPLITS)
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise DataError(f"there is no directory {str(root)!r}: set data.source.path to a folder of images")
        if not 0 <= self.test_fraction < 1:
            raise ConfigError(f"source 'folder': test_fraction must lie in [0, 1), got {self.test_fraction}")
        rows = _metadata_rows(root) or _plain_rows(root)
        if not rows:
            raise DataError(f"no images in {str(root)!r}: looked for {', '.join(ENDINGS)} in it and in its sub-folders")
        names = tuple(sorted({row["label"] for row in rows if "label" in row}))
        rows = [row for row in rows if self._is_test(row["file_name"]) == (self.split == "test")]
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
        object.__setattr__(self, "skipped", skipped)
        object.__setattr__(self, "class_names", names)

    def _is_test(self, name: str) -> bool:
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.test_fraction * 2**64

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

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


def _plain_rows(root: Path) -> list[dict[str, str]]:
    """Every image below a directory; its class is the first sub-folder, if all images lie in one."""
    paths = [path.relative_to(root) for path in image_files(root)]
    classes = all(len(path.parts) > 1 for path in paths)
    return [{"file_name": path.as_posix(), **({"label": path.parts[0]} if classes else {})} for path in paths]


def _metadata_rows(root: Path) -> list[dict[str, str]]:
    """The rows of a metadata file, checked; empty where there is none."""
    found = [root / name for name in METADATA if (root / name).exists()]
    if not found:
        return []
    if len(found) > 1:
        raise DataError(f"{root} has both {' and '.join(METADATA)}; keep one")
    rows = []
    for number, row in _read_rows(found[0]):
        where = f"{found[0]}, line {number}"
        unknown = [field for field in row if field not in _FIELDS]
        if unknown:
            raise DataError(
                f"{where}: unknown field {unknown[0]!r}{nearest(str(unknown[0]), _FIELDS)} (known: {', '.join(_FIELDS)})"
            )
        if not row.get("file_name") or not (root / row["file_name"]).is_file():
            raise DataError(f"{where}: file_name {row.get('file_name')!r} is not a file in {root}")
        rows.append({field: str(value) for field, value in row.items() if value not in (None, "")})
    for field in ("label", "caption"):
        having = sum(field in row for row in rows)
        if 0 < having < len(rows):
            raise DataError(f"{found[0]}: {len(rows) - having} of {len(rows)} rows have no {field}; give it to all or none")
    return sorted(rows, key=lambda row: row["file_name"])


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            yield from enumerate(csv.DictReader(file), start=2)
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is not a JSON object")
            yield number, row


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
