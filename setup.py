"""Packaging lives in pyproject.toml; what it cannot say: recipes and experiments are installed inside of the package."""

from setuptools import find_packages, setup

BESIDE = {f"diffusion_jax.{name}": name for name in ("configs", "experiments")}
inner = [f"diffusion_jax.experiments.{name}" for name in find_packages("experiments")]

setup(packages=[*find_packages(include=["diffusion_jax*"]), *BESIDE, *inner], package_dir=BESIDE)
