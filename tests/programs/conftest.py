"""Fixtures of the programs' tests."""

from __future__ import annotations

from tests.tiny_systems import runs  # noqa: F401
