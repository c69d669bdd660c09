"""Reference libraries of PyTorch that tests compare with; a test that needs one which is not installed skips by name."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest


def peer(name: str) -> ModuleType:
    """A module that is compared with, or a skip that names it."""
    package = name.partition(".")[0]
    if package in ("torchvision", "torch_fidelity", "pytorch_fid", "cleanfid", "transformers", "diffusers"):
        _mend_torchvision()
    return pytest.importorskip(name, reason=f"compares with {package}, which is not installed", exc_type=ImportError)


def _mend_torchvision() -> None:
    """A torchvision built for another torch cannot load its operators; the networks in it need none of them."""
    torch = peer("torch")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # it undoes itself when it is collected


_LIBRARIES: list = []


def relative(ours: object, theirs: object) -> float:
    """The largest difference over the largest entry."""
    ours, theirs = (np.asarray(array, np.float64) for array in (ours, theirs))
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def arrays(module: object) -> dict[str, np.ndarray]:
    """The state dict of a PyTorch module."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def shaken(module: object, seed: int) -> object:
    """A module in evaluation mode, each of whose parameters was moved: no bias is 0, no scale is 1."""
    torch = peer("torch")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return module.eval()


def random_inception(module: object, seed: int = 0) -> object:
    """Weights that keep the size of the signal through all layers, and moments that are not those of a fresh layer."""
    torch = peer("torch")
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda tensor, low, high: tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)  # noqa: E731
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d):
                deviation = (2 / part.weight[0].numel()) ** 0.5
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * deviation)
            if isinstance(part, torch.nn.BatchNorm2d):
                uniform(part.weight, 0.8, 1.2)
                uniform(part.bias, -0.2, 0.2)
                uniform(part.running_mean, -0.2, 0.2)
                uniform(part.running_var, 0.5, 1.5)
        uniform(module.fc.bias, -1, 1)
    return module.eval()


def fid_inception(monkeypatch: pytest.MonkeyPatch) -> object:
    """pytorch-fid's network with random weights instead of those that it would download."""
    module, torchvision = peer("pytorch_fid.inception"), peer("torchvision")
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(torchvision.models.Inception3, "load_state_dict", lambda self, tensors: None)
        return random_inception(module.fid_inception_v3())
