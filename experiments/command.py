"""How a study runs as a program: its text on stdout, or one line on stderr and status 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusion_jax import programs
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import command_line


def run(name: str, work: Callable[[], str]) -> None:
    """Parse flags, run a study and exit.

    Args:
      work: does it, and returns what to print.
    """

    def checked(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
        if overrides:
            raise ConfigError(f"a study takes its recipes as they are: leave out --config.{next(iter(overrides))}")
        programs.configure_logging()
        return work()

    command_line.run_program(name, lambda: None, checked)
