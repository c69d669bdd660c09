"""Networks of other libraries with every option that changes what weights mean: theirs in PyTorch, ours, and the layout."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from diffusion_jax import models
from diffusion_jax.interop import diffusers, edm, edm2, guided_diffusion  # noqa: F401  by name
from diffusion_jax.interop.diffusers_config import network_fields
from diffusion_jax.registry import build
from tests.peers import arrays, peer, shaken

_ADM = dict(size=8, channels=64, multipliers=(0.5, 1), blocks=1, attention=(4,), head_channels=16, resblocks=True, groups=32)
_IDDPM = dict(size=8, channels=32, multipliers=(1, 2), blocks=1, attention=(4,), groups=32)
_DIFFUSERS = dict(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
_EDM = dict(size=8, channels=16, multipliers=(1, 2), attention=(4,), blocks=1)
_EDM2 = dict(size=8, channels=16, multipliers=(1, 2), blocks=1, attention=(4,), head=16)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cosines first": ("diffusers", _DIFFUSERS),
    "sines first": ("diffusers", _DIFFUSERS | dict(flip_sin_to_cos=False)),
    "cosines first, freq_shift 1": ("diffusers", _DIFFUSERS | dict(freq_shift=1)),
    "sines first, freq_shift 1, padding 0, one head": (
        "diffusers",
        _DIFFUSERS | dict(freq_shift=1, flip_sin_to_cos=False, downsample_padding=0, attention_head_dim=None, norm_eps=1e-6),
    ),
    "a table of classes, scale and shift, resampling blocks": (
        "diffusers",
        _DIFFUSERS | dict(
            num_class_embeds=5, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4, downsample_type="resnet",
            upsample_type="resnet", down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), out_channels=6,
        ),
    ),
    "improved, four heads, a table of classes": ("improved_diffusion", _IDDPM | dict(heads=4, classes=5)),
    "improved, additive": ("improved_diffusion", _IDDPM | dict(scale_shift=False)),
    "guided, the legacy order": ("guided_diffusion", _ADM | dict(classes=5)),
    "guided, the new order": ("guided_diffusion", _ADM | dict(classes=5, new_order=True)),
    "guided, an upsampler": ("guided_diffusion", _ADM | dict(inputs=6)),
    "DDPM++, classes": ("edm", dict(_EDM, kind="ddpmpp", classes=5, augment=9)),
    "NCSN++": ("edm", dict(_EDM, kind="ncsnpp", multipliers=(2, 2))),
    "ADM of EDM, classes": ("edm", dict(_EDM, kind="adm", channels=128, classes=5)),
    "EDM2, classes": ("edm2", dict(_EDM2, classes=5)),
    "EDM2": ("edm2", _EDM2),
}  # fmt: skip


class Case(NamedTuple):
    """theirs: their module. network: ours. layout: fields of the layout. fields: of the network in a recipe."""

    theirs: Any
    network: Any
    layout: dict[str, Any]


def _guided(layout: str, fields: dict[str, Any]) -> Case:
    from tests.interop.adm_in_torch import UNet

    network = models.unet(
        fields["size"], out_channels=6, channels=fields["channels"], multipliers=fields["multipliers"],
        num_res_blocks=fields["blocks"], attention_resolutions=fields["attention"], num_heads=fields.get("heads", 1),
        head_channels=fields.get("head_channels"), conditioning="adagn" if fields.get("scale_shift", True) else "additive",
        resample="resblock" if fields.get("resblocks") else "conv", num_classes=fields.get("classes", 0),
        low_res_channels=fields.get("inputs", 3) - 3,
    )  # fmt: skip
    order = {"attention_order": "new" if fields.get("new_order") else "legacy"} if layout == "guided_diffusion" else {}
    return Case(UNet(**fields), network, {"name": layout, **order})


def _edm(fields: dict[str, Any]) -> Case:
    from tests.interop.edm_in_torch import Network

    fields = dict(fields)
    kind = fields["kind"]
    peer("torch").manual_seed(3)  # the frequencies are drawn
    theirs = Network(**fields)
    shared = dict(
        image_size=fields["size"], channels=fields["channels"], multipliers=fields["multipliers"],
        attention_resolutions=fields["attention"], num_res_blocks=fields["blocks"], num_classes=fields.get("classes", 0),
    )  # fmt: skip
    if kind == "adm":
        return Case(theirs, models.edm_adm64(**shared), {"name": "edm"})
    extra = {"augment_dim": fields.get("augment", 0)}
    if kind == "ncsnpp":
        frequencies = theirs.map_noise.freqs.tolist()
        extra |= dict(embedding="fourier", pyramid=True, resample_filter=(1, 3, 3, 1), frequencies=frequencies)
    return Case(theirs, models.song_unet(**shared, **extra), {"name": "edm"})


def _edm2(fields: dict[str, Any]) -> Case:
    from tests.interop.edm2_in_torch import Precond

    peer("torch").manual_seed(3)
    theirs = Precond(**fields)
    constants = [[part.freqs.tolist(), part.phases.tolist()] for part in (theirs.unet.emb_fourier, theirs.logvar_fourier)]
    network = models.edm2(
        fields["size"], channels=fields["channels"], multipliers=fields["multipliers"], num_res_blocks=fields["blocks"],
        attention_resolutions=fields["attention"], head_channels=fields["head"], num_classes=fields.get("classes", 0),
        fourier=constants[0], uncertainty_fourier=constants[1],
    )  # fmt: skip
    return Case(theirs, network, {"name": "edm2"})


@functools.cache
def case(name: str) -> Case:
    """Their network with random weights, ours and the layout; skips where PyTorch or diffusers is not."""
    peer("torch")
    kind, fields = CASES[name]
    if kind == "diffusers":
        theirs = peer("diffusers").UNet2DModel(**fields)
        config = json.loads(json.dumps(dict(theirs.config)))
        found = Case(theirs, models.unet(**network_fields(config)), {"name": kind, "cosine_first": config["flip_sin_to_cos"]})
    else:
        found = {"edm": _edm, "edm2": _edm2}.get(kind, functools.partial(_guided, kind))(fields)
    shaken(found.theirs, 0)
    return found


def save(name: str, folder: Path) -> Path:
    """Write their weights as their library would, constants and all; returns what --weights names."""
    from safetensors.numpy import save_file

    theirs = case(name).theirs
    if CASES[name][0] == "diffusers":
        theirs.save_pretrained(folder)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: np.array(tensor, order="C") for key, tensor in arrays(theirs).items()}, folder / "theirs.safetensors")
    return folder / "theirs.safetensors"


def opened(name: str, path: Path) -> Any:
    """Their network built from config.json and nothing else, with the weights of a file that was exported."""
    kind, config = CASES[name][0], json.loads((path.parent / "config.json").read_text())
    if kind == "diffusers":
        return peer("diffusers").UNet2DModel.from_pretrained(path.parent).eval()
    size = config.get("image_size", config.get("img_resolution"))
    fields = {"size": size, "channels": config["model_channels"], "multipliers": tuple(config["channel_mult"])}
    if kind.endswith("diffusion"):
        from tests.interop.adm_in_torch import UNet

        head = config.get("num_head_channels", -1)
        module = UNet(
            **fields, blocks=config["num_res_blocks"], attention=[size // rate for rate in config["attention_resolutions"]],
            heads=config["num_heads"], head_channels=None if head < 0 else head, groups=32,
            scale_shift=config["use_scale_shift_norm"], resblocks=config.get("resblock_updown", False),
            new_order=config.get("use_new_attention_order", False), classes=config["num_classes"] or 0,
            inputs=config["in_channels"] * (2 if config["_class_name"] == "SuperResModel" else 1),
            outputs=config["out_channels"],
        )  # fmt: skip
    elif kind == "edm2":
        from tests.interop.edm2_in_torch import Precond

        module = Precond(
            **fields, blocks=config["num_blocks"], attention=config["attn_resolutions"], head=config["channels_per_head"],
            classes=config["label_dim"], inputs=config["img_channels"],
        )  # fmt: skip
    else:
        from tests.interop.edm_in_torch import Network

        song = {"standard": "ddpmpp", "residual": "ncsnpp"}[config.get("encoder_type", "standard")]
        module = Network(
            song if config["_class_name"] == "SongUNet" else "adm", **fields, blocks=config["num_blocks"],
            attention=config["attn_resolutions"], classes=config["label_dim"], augment=config.get("augment_dim", 0),
        )  # fmt: skip
    torch = peer("torch")
    module.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in load_file(path).items()})
    return module.eval()


def outputs(name: str, module: Any) -> np.ndarray:
    """What a module of theirs makes of fixed inputs, channels first; of EDM2 the uncertainty beside it."""
    torch = peer("torch")
    kind, fields = CASES[name]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    x, noise = draw(2, fields.get("inputs", 3), 8, 8), torch.tensor([3.0, 400.0] if kind not in ("edm2",) else [-0.7, 1.1])
    labels = torch.tensor([0, 3]) if fields.get("classes") or fields.get("num_class_embeds") else None
    with torch.no_grad():
        if kind == "diffusers":
            return module(x, noise, class_labels=labels).sample.numpy()
        if kind == "edm":
            augment = draw(2, 9) if fields.get("augment") else None
            return module(x, torch.tensor([-0.7, 1.1]) if fields["kind"] == "ncsnpp" else noise, labels, augment).numpy()
        found = module(x, noise, labels).numpy()
        return np.append(found, module.log_variance(noise).numpy()) if kind == "edm2" else found


def layout(name: str) -> Any:
    """The layout of a case."""
    return build("layout", case(name).layout)
