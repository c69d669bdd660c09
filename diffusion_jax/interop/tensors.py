"""Named arrays of weight files: safetensors, and PyTorch's files read without running what is in them."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.files import user_path
from diffusion_jax.interop.pickles import Refused, asked_for, read_modules

_TORCH_SUFFIXES = (".pt", ".pth", ".pkl", ".bin")
_WRAPPERS = ("state_dict", "model", "teacher")  # keys under which training programs put their weights
_BLOCK = 1 << 20


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
      DataError: no such file.
    """
    digest = hashlib.sha256()
    with open(_existing(path), "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: str | Path, expected: str | None = None) -> str:
    """Return the SHA-256 of a file, compared with what it must be.

    A name such as `vgg16-397923af.pth` follows PyTorch's convention: the eight digits are the first of the checksum, and
    they are compared too.

    Args:
      expected: the checksum, or its first digits, at least 8.

    Raises:
      ConfigError: an expected checksum that is none.
      DataError: no such file, or one of another checksum.
    """
    if expected is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", expected):
        raise ConfigError(f"sha256 must be 8 to 64 hexadecimal digits, got {expected!r}")
    found = sha256(path)
    in_name = re.search(r"-([0-9a-f]{8})\.(?:pt|pth)$", Path(path).name)
    for source, digits in (("sha256", expected), ("the file's name", in_name and in_name[1])):
        if digits and not found.startswith(digits.lower()):
            raise DataError(
                f"{path}: {source} says the checksum begins with {digits.lower()}, but it is {found}; "
                "the file is damaged or another one: fetch it again"
            )
    return found


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read all tensors of a weight file by name.

    Args:
      path: `.safetensors`; or `.pt`, `.pth`, `.pkl`, `.bin` with a state dict, which needs PyTorch (the extra "parity").
        A state dict inside of "state_dict", "model" or "teacher" is found; so are the tensors of a pickled module, or of
        "ema" in a training snapshot such as EDM's, whose code does not run (see `pickles`).

    Returns:
      Arrays in the file's own layout and dtype; bfloat16 is float32 when it comes from PyTorch's files.

    Raises:
      DataError: a missing, truncated or damaged file, one that holds no tensors, or a pickle that wants to run code.
      ConfigError: an unknown suffix, or a package that is not installed.
    """
    path = _existing(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _named_arrays(path, _read_torch(path))
    known = ", ".join((".safetensors", *_TORCH_SUFFIXES))
    raise ConfigError(f"{path}: cannot tell the format of a weight file from {path.suffix!r} (known: {known})")


def _existing(path: str | Path) -> Path:
    path = user_path(path)
    if not path.is_file():
        raise DataError(f"no weight file {path}: give the path of one that you have; nothing is downloaded")
    return path


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  so that numpy knows bfloat16 by name

    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ConfigError(f"{path}: reading it needs the package safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no safetensors file, or is cut short ({error}); fetch it again") from error


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading {path.suffix} needs PyTorch: pip install 'diffusion_jax[parity]', or convert it to safetensors"
        ) from error
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the protocol of pickles that are no archives
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        return _read_modules(path, error)
    except Exception as error:  # whatever a damaged file makes of itself
        if "TorchScript" in str(error):
            raise DataError(
                f"{path} is a TorchScript archive, a program with its weights; save the state dict of what "
                "torch.jit.load gives, best as safetensors"
            ) from error
        raise DataError(f"{path} is no file of PyTorch tensors, or is cut short ({_reason(error)}); fetch it again") from error


def _read_modules(path: Path, error: pickle.UnpicklingError) -> dict[str, Any]:
    """The tensors of a file that holds more than tensors: of pickled modules, taken without running their code."""
    refused, tensors = asked_for(error), {}
    if not _is_archive(path):
        try:
            tensors = read_modules(path)
        except Refused as found:
            refused = str(found)
        except Exception:  # whatever a damaged pickle makes of itself
            refused = None
    if tensors:
        return tensors
    asks = f" (it asks for {refused})" if refused else ""
    raise DataError(
        f"{path} is damaged, or holds more than tensors and would run code when it is read{asks}, which is refused; "
        "save its state dict alone, best as safetensors"
    ) from error


def _check_archive(path: Path) -> None:
    """Raise a `DataError` if a part of an archive is not as its checksum says; PyTorch's reader does not look.

    It can be told to write archives without checksums: there none is right, and nothing is known.
    """
    if not _is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [part for part in archive.namelist() if not part.endswith("/")]
            bad = [part for part in parts if not _is_whole(archive, part)]
    except Exception as error:  # as above
        raise DataError(f"{path} is no archive of PyTorch, or is cut short ({_reason(error)}); fetch it again") from error
    if 0 < len(bad) < len(parts):
        raise DataError(f"{path} is damaged: its part {bad[0]!r} is not as its checksum says; fetch it again")


def _is_whole(archive: zipfile.ZipFile, part: str) -> bool:
    try:
        with archive.open(part) as file:
            while file.read(_BLOCK):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _reason(error: BaseException) -> str:
    return " ".join(str(error).partition("\n")[0].split())[:200] or type(error).__name__


def _is_archive(path: Path) -> bool:
    """Whether torch.save wrote the file, as a zip archive; it begins with one, other pickles may have one inside."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _named_arrays(path: Path, found: Any) -> dict[str, np.ndarray]:
    import torch

    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"{path} holds a {type(found).__name__}, not a state dict of named tensors")
    other = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise DataError(f"{path}: {', '.join(other[:3])} is no tensor: save the state dict of the network alone")
    wide = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in found.items()}
    return {str(name): value.detach().numpy() for name, value in wide.items()}
