"""Programs run in this process: what their command line gives, without the seconds that starting Python takes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from absl import flags

from diffusion_jax.training.recipes import split_overrides


def call(program: ModuleType, *arguments: Any) -> str:
    """What the program prints at its end; raises what it would refuse its arguments with."""
    values = flags.FLAGS
    before, parsed = set(values), values.is_parsed()
    try:
        program.define_flags()
        argv, overrides = split_overrides([program.__name__, *map(str, arguments)])
        values(argv)
        return program._work(values.flag_values_dict(), overrides)
    finally:
        for name in set(values) - before:
            delattr(values, name)
        values.unparse_flags()
        if parsed:
            values.mark_as_parsed()
