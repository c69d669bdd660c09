"""Networks written in PyTorch are collected only where it is."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("torch") else ["adm_in_torch.py", "edm_in_torch.py", "edm2_in_torch.py"]
