"""docs/extending.md, followed to the letter: a conditioner in a file of one's own, trained with and asked for."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import processes

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.S | re.M)


def test_a_conditioner_is_one_file_of_sixty_lines():
    assert len(blocks("python")[0].splitlines()) <= 60


@pytest.mark.recipes
def test_the_page_is_followed_to_the_letter(tmp_path):
    names = re.findall(r"`(\w+\.py)`(?:,[^`]*)?:\n\n```python", PAGE)
    assert names == ["histogram.py", "colours.py"]
    for name, block in zip(names, blocks("python"), strict=True):
        (tmp_path / name).write_text(block)
    sunset = np.full((20, 30, 3), (250, 130, 20), np.uint8)
    Image.fromarray(sunset).save(tmp_path / "sunset.png")
    environment = processes.environment(1, PYTHONPATH=str(ROOT), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for command in blocks("bash")[0].strip().splitlines():
        done = subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "runs/colours/like_sunset").glob("0*.png"))]
    assert len(drawn) == 16
    red, _, blue = np.stack(drawn).reshape(-1, 3).mean(0)
    assert red > blue + 30  # the colours of the picture
