"""What the programs share: how they log."""

from __future__ import annotations

import logging
import sys

import absl.logging


def configure_logging() -> None:
    """This library's messages on stderr, one line each; of other libraries only warnings."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    logger = logging.getLogger("diffusion_jax")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.propagate = False
