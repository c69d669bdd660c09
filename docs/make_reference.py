"""Write docs/reference.md, every field and every part with its defaults, from the code.

python docs/make_reference.py            # write it
python docs/make_reference.py --check    # or say whether it is up to date, as the tests do
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusion_jax.convert
import diffusion_jax.evaluation
import diffusion_jax.features
import diffusion_jax.training  # noqa: F401  (registers the parts)
from diffusion_jax.data import Pipeline
from diffusion_jax.registry import annotations, kinds, known, lookup
from diffusion_jax.systems import Sampling
from diffusion_jax.training.config import DEFAULTS
from diffusion_jax.training.optimizer import Shared
from diffusion_jax.training.sections import Mesh, Training
from diffusion_jax.values import describe

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Reference: every field and every part

Made from the code by `python docs/make_reference.py`; edit the docstrings instead. What a recipe says for a part is its name,
or a mapping with the name and some of the fields below: `{"name": "cosine", "num_steps": 4000}`. A value of a wrong kind is
refused before anything is built.
"""
# What is found by name in which section of a recipe.
WHERE = {
    "codec": "`system.codec`", "conditioner": "`system.conditioners`, by name", "degradation": "`data.degradation`",
    "ema": "`training.ema`, a list", "features": "`--features` of evaluate", "grid": "`sampling.grid`",
    "layout": "`--layout` of convert", "levels": "`levels` of the consistency objective", "network": "`system.network`",
    "noise_input": "`system.process.noise_input`", "objective": "`system.objective`", "optimizer": "`optimizer`",
    "pairs": "`pairs` of the consistency objective", "prediction": "`system.process.prediction`", "process": "`system.process`",
    "schedule": "`system.process.schedule`", "solver": "`sampling.solver`", "source": "`data.source`", "system": "`system`",
    "times": "`system.objective.times`", "weighting": "`system.objective.weighting`",
}  # fmt: skip


def meanings(doc: str) -> dict[str, str]:
    """What the Args and Attributes of a docstring say, by field."""
    found: dict[str, str] = {}
    for section in re.findall(r"^ *(?:Args|Attributes):\n((?: {2,}.*\n|\n(?= {4}))*)", doc + "\n", flags=re.M):
        indent = len(section) - len(section.lstrip(" "))
        names: list[str] = []
        for line in section.splitlines():
            entry = re.match(rf" {{{indent}}}(\w[\w, ]*): (.*)", line)
            if entry:
                names = [name.strip() for name in entry[1].split(",")]
                found.update(dict.fromkeys(names, entry[2]))
            elif line.strip():
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found


def cell(text: str) -> str:
    """Text that a cell of a table can hold."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def table(fields: Mapping[str, tuple[str, str, str]]) -> Iterator[str]:
    """The lines of a table of {field: (what it takes, default, meaning)}."""
    if fields:
        yield "| field | takes | default | |"
        yield "|---|---|---|---|"
        for name, (takes, default, meaning) in fields.items():
            yield f"| `{name}` | {cell(takes)} | {default} | {cell(meaning)} |"
        yield ""


def fields_of(part: Callable[..., Any], leave_out: tuple[str, ...] = ("spec", "rate")) -> dict[str, tuple[str, str, str]]:
    """The fields of a part, {name: (what it takes, default, meaning)}."""
    kinds_of, said = annotations(part), meanings(inspect.getdoc(part) or "")
    if inspect.isclass(part):
        for base in reversed(part.__mro__[:-1]):
            said = {**meanings(inspect.getdoc(base) or ""), **said}
    found = {}
    for name, parameter in inspect.signature(part).parameters.items():
        if name in leave_out or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        takes = "" if kinds_of[name] is Any else describe(kinds_of[name])
        default = "needed" if parameter.default is parameter.empty else f"`{shown(parameter.default)}`"
        found[name] = takes, default, said.get(name, "")
    return found


def of_defaults(fields: Mapping[str, tuple[str, str, str]], given: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Fields with the defaults of recipes, where those differ from the part's own."""
    return {name: (takes, f"`{given[name]!r}`", said) for name, (takes, _, said) in fields.items() if name in given}


def shown(value: Any) -> str:
    """A default as a recipe would say it."""
    if callable(value) or " at 0x" in repr(value):
        return getattr(value, "__name__", type(value).__name__)
    return repr(value).replace("|", "\\|")


def part_lines(kind: str, name: str) -> Iterator[str]:
    """A part: its name, what it is, its fields; of a preset only the defaults that it changes."""
    part = lookup(kind, name)
    summary = (inspect.getdoc(part) or "").split("\n\n")[0].replace("\n", " ")
    yield f"### `{name}`"
    yield ""
    yield cell(summary)
    yield ""
    whole = getattr(part, "__wrapped__", None)
    fields = fields_of(part)
    if whole is not None and inspect.isfunction(whole) and whole.__name__ in set(known(kind)) - {name}:
        usual = fields_of(whole)
        changed = [f"`{field}={of[1].strip('`')}`" for field, of in fields.items() if usual.get(field, of)[1] != of[1]]
        yield f"As `{whole.__name__}`, with {', '.join(changed)}." if changed else f"As `{whole.__name__}`."
        yield ""
    else:
        yield from table(fields)


def sections() -> Iterator[str]:
    """The sections of a recipe that are no parts."""
    yield "## Sections of a recipe"
    yield ""
    yield f"The sections are {', '.join(f'`{name}`' for name in DEFAULTS)}."
    yield ""
    for title, fields in (
        ("data", fields_of(Pipeline, ("host", "hosts"))),
        ("training", fields_of(Training)),
        ("mesh", fields_of(Mesh)),
        ("optimizer", {**fields_of(Shared), **of_defaults(fields_of(Shared), DEFAULTS["optimizer"])}),
        ("sampling", fields_of(Sampling)),
    ):
        yield f"### `{title}`"
        yield ""
        yield from table(fields)


def page() -> str:
    """The whole page."""
    lines = [HEAD, *sections()]
    for kind in kinds():
        own = [name for name in known(kind) if _is_of_the_library(kind, name)]
        if own:
            lines += [f"## {kind}", "", f"In {WHERE[kind]}.", ""]
            lines += [line for name in own for line in part_lines(kind, name)]
    return "\n".join(lines).rstrip() + "\n"


def _is_of_the_library(kind: str, name: str) -> bool:
    return (inspect.unwrap(lookup(kind, name)).__module__ or "").startswith("diffusion_jax.")


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit(f"{PAGE.name} is out of date: run python docs/make_reference.py")
