"""What data are, without reading them: a description to be kept with a run, and how two of them differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.data.sources.base import Identified, Source
from diffusion_jax.errors import DataError

_NAMED = 3  # of the files, or classes, that differ


def described(source: Source, split: str = "train") -> dict[str, Any]:
    """Return what a source's data are, as JSON data: its name, the names of its classes, and its `identity` where it has one.

    A source that does not say more of itself is described by the number of its training examples.

    >>> from diffusion_jax.data.sources import digits
    >>> described(digits())["count"], described(digits())["class_names"][:3]
    (1617, ['0', '1', '2'])
    """
    if isinstance(source, Identified):
        more = source.identity()
    else:
        more = {"count": len(source)} if split == "train" else {}
    return json.loads(json.dumps({"source": source.name, "class_names": list(source.class_names), **more}))


def brief(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description without its list of files, whose digest it has."""
    return {name: value for name, value in description.items() if name != "files"}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return how two descriptions differ, in words, the most telling first; what only one of them has is not compared.

    >>> before = {"class_names": ["cat", "dog"], "images": 3, "files": {"cat/1.png": 7, "cat/2.png": 7, "dog/1.png": 9}}
    >>> now = {"class_names": ["cat", "lynx"], "images": 3, "files": {"cat/1.png": 7, "cat/2.png": 8, "lynx/1.png": 9}}
    >>> for line in differences(before, now):
    ...     print(line)
    class 'dog' removed
    class 'lynx' added
    file dog/1.png removed
    file lynx/1.png added
    file cat/2.png changed in size
    """
    common = [name for name in before if name in now and before[name] != now[name]]
    lines: list[str] = []
    if "class_names" in common:
        lines += _changes("class", "classes", dict.fromkeys(before["class_names"]), dict.fromkeys(now["class_names"]), repr)
        lines = lines or [f"classes in another order: {before['class_names']} became {now['class_names']}"]
    if "files" in common:
        lines += _changes("file", "files", before["files"], now["files"], str)
    elif "classes" in common:
        counts = [(name, before["classes"][name], now["classes"].get(name)) for name in before["classes"]]
        lines += [f"class {name!r} of {old} images has {new}" for name, old, new in counts if new not in (old, None)][:_NAMED]
    told = {"class_names", "files", "classes", "digest"} | ({"images"} if lines else set())
    lines += [f"{name} was {before[name]!r}, now {now[name]!r}" for name in common if name not in told]
    if "digest" in common and not lines:
        lines = ["names or sizes of files, labels or captions changed"]
    return lines


def _changes(one: str, many: str, before: Mapping[str, Any], now: Mapping[str, Any], show: Any) -> list[str]:
    """Entries removed, added and changed, the first of each by name."""
    found: dict[str, Sequence[str]] = {
        "removed": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
        "changed in size": [name for name in now if name in before and before[name] != now[name]],
    }
    lines = []
    for what, names in found.items():
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"{one if len(names) == 1 else many} {', '.join(map(show, names[:_NAMED]))}{more} {what}")
    return lines


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The description that is kept with a run.

    Attributes:
      description: as `described` returns it.
      mend: how to mend a difference, for the message.
    """

    description: Mapping[str, Any]
    mend: str

    def check(self, source: Source, split: str = "train") -> None:
        """Raise a `DataError` with the difference if the data that are there now are others."""
        changed = differences(self.description, described(source, split))
        if changed:
            raise DataError(f"the data are not those that the run was trained on: {'; '.join(changed)}; {self.mend}")
