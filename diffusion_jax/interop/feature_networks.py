r"""Weight files of the networks that metrics see images through: which tensor goes where.

The names are those of torchvision and pytorch-fid (Inception-v3, VGG-16), of the DINOv2 release, of transformers (DINOv2,
CLIP) and of OpenCLIP. Where a network has several namings, its table knows them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.interop.convert import Rule, Table, convert, convolution, linear, linear_of_image
from diffusion_jax.interop.tensors import check_sha256, read_tensors


def _norm(name: str, path: str) -> tuple[Rule, Rule]:
    return Rule(rf"{name}\.weight", f"{path}/scale"), Rule(rf"{name}\.bias", f"{path}/bias")


def _dense(name: str, *paths: str) -> tuple[Rule, Rule]:
    """Weight and bias of a linear map, shared among several paths if it stacks them."""
    one = len(paths) == 1
    kernels, biases = tuple(f"{path}/kernel" for path in paths), tuple(f"{path}/bias" for path in paths)
    weight = Rule(rf"{name}\.weight", kernels[0] if one else kernels, linear)
    return weight, Rule(rf"{name}\.bias", biases[0] if one else biases)


INCEPTION = Table(
    rules=(
        Rule(r"(.+)\.conv\.weight", r"\1/conv/kernel", convolution),
        Rule(r"(.+)\.bn\.weight", r"\1/bn/scale"),
        Rule(r"(.+)\.bn\.bias", r"\1/bn/bias"),
        Rule(r"(.+)\.bn\.running_mean", r"\1/bn/mean"),
        Rule(r"(.+)\.bn\.running_var", r"\1/bn/var"),
        *_dense("fc", "fc"),
    ),
    ignored=(r".+\.num_batches_tracked", r"AuxLogits\..+"),
)

VGG16 = Table(
    rules=(
        Rule(r"features\.(\d+)\.weight", r"conv\1/kernel", convolution),
        Rule(r"features\.(\d+)\.bias", r"conv\1/bias"),
        Rule(r"classifier\.0\.weight", "fc1/kernel", linear_of_image(7, 7)),
        Rule(r"classifier\.0\.bias", "fc1/bias"),
        *_dense(r"classifier\.3", "fc2"),
    ),
    ignored=(r"classifier\.6\..+",),
)

_QKV = tuple(rf"block\1/attention/{name}" for name in ("query", "key", "value"))


def _each(stem: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules for linear maps inside of a numbered block: their names there, and their paths inside of the block."""
    return tuple(rule for name, path in names.items() for rule in _dense(stem + name, rf"block\1/{path}"))


_HUB = r"blocks\.(\d+)\."
_LAYER = r"(?:dinov2\.)?encoder\.layer\.(\d+)\."
DINOV2 = Table(
    rules=(
        # the release
        Rule("cls_token", "class_token", np.squeeze),
        Rule("pos_embed", "positions", np.squeeze),
        Rule(r"patch_embed\.proj\.weight", "patches/kernel", convolution),
        Rule(r"patch_embed\.proj\.bias", "patches/bias"),
        *_norm(_HUB + "norm1", r"block\1/norm1"),
        *_norm(_HUB + "norm2", r"block\1/norm2"),
        *_dense(_HUB + r"attn\.qkv", *_QKV),
        *_each(_HUB, {r"attn\.proj": "attention/out", r"mlp\.fc1": "mlp_in", r"mlp\.fc2": "mlp_out"}),
        Rule(_HUB + r"ls([12])\.gamma", r"block\1/layer_scale\2"),
        *_norm("norm", "norm_out"),
        # transformers
        Rule(r"(?:dinov2\.)?embeddings\.cls_token", "class_token", np.squeeze),
        Rule(r"(?:dinov2\.)?embeddings\.position_embeddings", "positions", np.squeeze),
        Rule(r"(?:dinov2\.)?embeddings\.patch_embeddings\.projection\.weight", "patches/kernel", convolution),
        Rule(r"(?:dinov2\.)?embeddings\.patch_embeddings\.projection\.bias", "patches/bias"),
        *_norm(_LAYER + "norm1", r"block\1/norm1"),
        *_norm(_LAYER + "norm2", r"block\1/norm2"),
        *_each(
            _LAYER,
            {
                r"attention\.(?:attention\.query|q_proj)": "attention/query",
                r"attention\.(?:attention\.key|k_proj)": "attention/key",
                r"attention\.(?:attention\.value|v_proj)": "attention/value",
                r"attention\.(?:output\.dense|o_proj)": "attention/out",
                r"mlp\.fc1": "mlp_in",
                r"mlp\.fc2": "mlp_out",
            },
        ),
        Rule(_LAYER + r"layer_scale([12])\.lambda1", r"block\1/layer_scale\2"),
        *_norm(r"(?:dinov2\.)?layernorm", "norm_out"),
    ),
    ignored=(r"(?:(?:dinov2\.)?embeddings\.)?mask_token",),
)

_VISION = r"(?:vision_model\.)?"
_TOWER = _VISION + r"encoder\.layers\.(\d+)\."
_OPEN = r"visual\.transformer\.resblocks\.(\d+)\."
CLIP_VISION = Table(
    rules=(
        # transformers, the prefix of the tower or none
        Rule(_VISION + r"embeddings\.class_embedding", "class_token"),
        Rule(_VISION + r"embeddings\.position_embedding\.weight", "positions"),
        Rule(_VISION + r"embeddings\.patch_embedding\.weight", "patches/kernel", convolution),
        *_norm(_VISION + "pre_layrnorm", "norm_in"),  # sic
        *_norm(_TOWER + "layer_norm1", r"block\1/norm1"),
        *_norm(_TOWER + "layer_norm2", r"block\1/norm2"),
        *_each(
            _TOWER,
            {
                r"self_attn\.q_proj": "attention/query",
                r"self_attn\.k_proj": "attention/key",
                r"self_attn\.v_proj": "attention/value",
                r"self_attn\.out_proj": "attention/out",
                r"mlp\.fc1": "mlp_in",
                r"mlp\.fc2": "mlp_out",
            },
        ),
        *_norm(_VISION + "post_layernorm", "norm_out"),
        Rule(r"visual_projection\.weight", "projection", linear),
        # OpenCLIP
        Rule(r"visual\.class_embedding", "class_token"),
        Rule(r"visual\.positional_embedding", "positions"),
        Rule(r"visual\.conv1\.weight", "patches/kernel", convolution),
        *_norm(r"visual\.ln_pre", "norm_in"),
        *_norm(_OPEN + "ln_1", r"block\1/norm1"),
        *_norm(_OPEN + "ln_2", r"block\1/norm2"),
        Rule(_OPEN + r"attn\.in_proj_weight", tuple(f"{path}/kernel" for path in _QKV), linear),
        Rule(_OPEN + r"attn\.in_proj_bias", tuple(f"{path}/bias" for path in _QKV)),
        *_each(_OPEN, {r"attn\.out_proj": "attention/out", r"mlp\.c_fc": "mlp_in", r"mlp\.c_proj": "mlp_out"}),
        *_norm(r"visual\.ln_post", "norm_out"),
        Rule(r"visual\.proj", "projection"),
    ),
    ignored=(
        r".*\.position_ids",
        r"logit_scale",
        r"text_model\..+",
        r"text_projection(?:\.weight)?",
        r"(?:transformer|token_embedding|ln_final)\..+",
        r"positional_embedding",
        r"attn_mask",
        r"input_resolution|context_length|vocab_size",
    ),
)


def load(path: str | Path, table: Table, shapes: Mapping[str, Any], sha256: str | None = None) -> tuple[dict[str, Any], str]:
    """Read, check and convert a weight file.

    Args:
      path: see `tensors.read_tensors`.
      table: one of this module's.
      shapes: of the network's parameters, as from its `shapes()`.
      sha256: what the file's checksum must be, or its first digits.

    Returns:
      (the parameters, the file's SHA-256).

    Raises:
      DataError: a missing or damaged file, another checksum, or weights of another network.
      ConfigError: a format that cannot be read here.
    """
    checksum = check_sha256(path, sha256)
    return convert(read_tensors(path), table, shapes, source=str(path)), checksum
