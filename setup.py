"""Packaging lives in pyproject.toml; this file serves tools that still look for a setup script."""

from setuptools import setup

setup()
