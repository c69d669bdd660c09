"""Tests mirror the package; what several of them share is a module beside this one."""

from tests import typechecking as typechecking  # named by the option --jaxtyping-packages in pyproject.toml
