"""What --help says: a program's docstring and its own flags, in groups, and none of other libraries."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

from absl import flags

_GROUPS: dict[str, list[str]] = {}
_ASKS = ("-h", "-help", "--help", "-helpfull", "--helpfull", "-helpshort", "--helpshort")
_PLACES = {"int": "N", "float": "X", "string": "TEXT", "comma separated list of strings": "A,B,..."}


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
    """Put the flags that are defined in the block under a title of the manual, in their order; inner groups keep theirs."""
    before, mine = set(flags.FLAGS), _GROUPS.setdefault(title, [])
    yield
    defined = [flag.name for each in flags.FLAGS.flags_by_module_dict().values() for flag in each]
    before.update(name for names in _GROUPS.values() for name in names)
    mine.extend(name for name in dict.fromkeys(defined) if name not in before)


def is_asked_for(argv: Sequence[str]) -> bool:
    """Return whether a command line asks for help."""
    return any(argument in _ASKS for argument in argv[1:])


def text(width: int | None = None) -> str:
    """Return the manual of the program that runs: its docstring, and its flags.

    Args:
      width: in columns; the terminal's by default, 100 at most.
    """
    width = width or min(100, shutil.get_terminal_size((100, 24)).columns)
    parts = [(sys.modules["__main__"].__doc__ or "").strip()]
    for title, names in _GROUPS.items():
        if names:
            parts.append("\n".join([f"{title}:", *(_entry(flags.FLAGS[name], width) for name in names)]))
    parts[-1] += "\n" + _laid_out(
        "  --config.FIELD=VALUE", "Any field of the configuration; docs/reference.md has them all.", width
    )
    return "\n\n".join(parts) + "\n"


def _entry(flag: flags.Flag, width: int) -> str:
    """A flag, what it takes, and what it is if left out."""
    prefix = ""
    if flag.boolean:
        head = f"  --[no]{flag.name}"
    else:
        choices = "|".join(getattr(flag.parser, "enum_values", ()))
        prefix = f"<{choices}>: "  # which absl puts before the help of a choice
        head = f"  --{flag.name}={choices or _PLACES.get(flag.flag_type(), 'TEXT')}"
    left_out = flag.default is None or flag.default is False or flag.default == []
    default = "" if left_out else f" (default: {flag.default_as_str.strip(chr(39))})"
    needed = " Required." if flag.validators and flag.default is None else ""
    return _laid_out(head, f"{flag.help.removeprefix(prefix)}{needed}{default}", width)


def _laid_out(head: str, body: str, width: int, left: int = 24) -> str:
    lines = [" " * left + line for line in textwrap.wrap(body, width - left, break_on_hyphens=False)]
    if len(head) < left - 1 and lines:
        return "\n".join([head.ljust(left) + lines[0].lstrip(), *lines[1:]])
    return "\n".join([head, *lines])
