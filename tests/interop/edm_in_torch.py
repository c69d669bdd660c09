"""EDM's networks written down in PyTorch from their description, with the names and buffers of its checkpoints.

Written for comparison, apart from the library: channels first, filters as grouped convolutions, heads cut out of one array.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Conv(nn.Module):
    """A convolution (or none, kernel 0) that may resample with a filter, fused with it where asked."""

    def __init__(self, inputs, outputs, kernel, up=False, down=False, taps=(1, 1), fused=False):
        super().__init__()
        self.up, self.down, self.fused, self.outputs = up, down, fused, outputs
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.randn(outputs)) if kernel else None
        taps = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(taps, taps)[None, None] / taps.sum() ** 2 if up or down else None)

    def forward(self, x):
        f, around = self.resample_filter, 0 if self.weight is None else self.weight.shape[-1] // 2
        inner = 0 if f is None else (f.shape[-1] - 1) // 2
        if self.fused and self.down:
            x = F.conv2d(x, self.weight, padding=around + inner)
            x = F.conv2d(x, f.tile(self.outputs, 1, 1, 1), stride=2, groups=self.outputs)
            return x + self.bias[:, None, None]
        if self.up:
            x = F.conv_transpose2d(x, 4 * f.tile(x.shape[1], 1, 1, 1), stride=2, padding=inner, groups=x.shape[1])
        if self.down:
            x = F.conv2d(x, f.tile(x.shape[1], 1, 1, 1), stride=2, padding=inner, groups=x.shape[1])
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=around)


def norm(width, eps):
    return nn.GroupNorm(min(32, width // 4), width, eps=eps)


class Block(nn.Module):
    def __init__(self, inputs, outputs, wide, style, up=False, down=False, attention=False):
        super().__init__()
        kind = dict(up=up, down=down, taps=style["taps"])
        self.scale, self.adaptive = style["scale"], style["adaptive"]
        self.norm0, self.conv0 = norm(inputs, style["eps"]), Conv(inputs, outputs, 3, **kind)
        self.affine = nn.Linear(wide, 2 * outputs if self.adaptive else outputs)
        self.norm1, self.conv1 = norm(outputs, style["eps"]), Conv(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or up or down:
            self.skip = Conv(inputs, outputs, 1 if style["project"] or inputs != outputs else 0, **kind)
        self.heads = (outputs // style["head"] if style["head"] else 1) if attention else 0
        if attention:
            self.norm2, self.qkv, self.proj = (
                norm(outputs, style["eps"]),
                Conv(outputs, 3 * outputs, 1),
                Conv(outputs, outputs, 1),
            )

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(emb)[:, :, None, None]
        if self.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(shift + self.norm1(h) * (scale + 1))
        else:
            h = F.silu(self.norm1(h + told))
        x = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * self.scale
        if self.heads:
            batch, width, *_ = x.shape
            # Head by head, channel by channel: its query, key and value side by side.
            query, key, value = self.qkv(self.norm2(x)).reshape(batch * self.heads, width // self.heads, 3, -1).unbind(2)
            weight = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(width // self.heads), dim=-1)
            x = (self.proj((value @ weight.transpose(1, 2)).reshape(x.shape)) + x) * self.scale
        return x


class Network(nn.Module):
    """SongUNet ("ddpmpp", "ncsnpp") or DhariwalUNet ("adm")."""

    def __init__(self, kind, size, channels, multipliers, blocks, attention, classes=0, augment=0, head=64):
        super().__init__()
        self.kind, self.channels, wide = kind, channels, 4 * channels
        song = kind != "adm"
        style = dict(
            taps=(1, 3, 3, 1) if kind == "ncsnpp" else (1, 1), scale=math.sqrt(0.5) if song else 1.0, adaptive=not song,
            eps=1e-6 if song else 1e-5, project=song, head=None if song else head,
        )  # fmt: skip
        told = 2 * channels if kind == "ncsnpp" else channels
        if kind == "ncsnpp":
            self.map_noise = nn.Module()
            self.map_noise.register_buffer("freqs", 16 * torch.randn(channels))
        self.map_label = nn.Linear(classes, told if song else wide, bias=song) if classes else None
        self.map_augment = nn.Linear(augment, told, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = nn.Linear(told, wide), nn.Linear(wide, wide)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        block = lambda a, b, **kw: Block(a, b, wide, style, **kw)  # noqa: E731
        now = aux = 3
        saved = []
        for level, multiplier in enumerate(multipliers):
            here, width = size >> level, channels * multiplier
            if level == 0:
                start = channels if song else width
                self.enc[f"{here}x{here}_conv"], now = Conv(now, start, 3), start
            else:
                self.enc[f"{here}x{here}_down"] = block(now, now, down=True)
                if kind == "ncsnpp":
                    self.enc[f"{here}x{here}_aux_residual"] = Conv(aux, now, 3, down=True, taps=style["taps"], fused=True)
                    aux = now
            saved.append(now)
            for index in range(blocks):
                self.enc[f"{here}x{here}_block{index}"] = block(now, width, attention=here in attention)
                now = width
                saved.append(now)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            here, width = size >> level, channels * multiplier
            if level == len(multipliers) - 1:
                self.dec[f"{here}x{here}_in0"] = block(now, now, attention=True)
                self.dec[f"{here}x{here}_in1"] = block(now, now)
            else:
                self.dec[f"{here}x{here}_up"] = block(now, now, up=True)
            for index in range(blocks + 1):
                sees = here in attention and (index == blocks or not song)
                self.dec[f"{here}x{here}_block{index}"] = block(now + saved.pop(), width, attention=sees)
                now = width
        if song:
            self.dec[f"{size}x{size}_aux_norm"] = norm(now, 1e-6)
            self.dec[f"{size}x{size}_aux_conv"] = Conv(now, 3, 3)
        else:
            self.out_norm, self.out_conv = norm(now, 1e-5), Conv(now, 3, 3)

    def embed(self, noise, label, augment):
        if self.kind == "ncsnpp":
            angles = noise[:, None] * 2 * math.pi * self.map_noise.freqs
        else:
            half = self.channels // 2
            angles = noise[:, None] * 10000 ** (-torch.arange(half) / (half - (self.kind == "ddpmpp")))
        first, second = (angles.cos(), angles.sin()) if self.kind == "adm" else (angles.sin(), angles.cos())
        emb = torch.cat([first, second], dim=1)
        one_hot = None if label is None else F.one_hot(label, self.map_label.in_features).float()
        if label is not None and self.kind != "adm":
            emb = emb + self.map_label(one_hot * math.sqrt(self.map_label.in_features))
        if augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if label is not None and self.kind == "adm":
            emb = emb + self.map_label(one_hot)
        return F.silu(emb)

    def forward(self, x, noise, label=None, augment=None):
        emb, aux, saved = self.embed(noise, label, augment), x, []
        for name, layer in self.enc.items():
            if "aux" in name:
                x = saved[-1] = aux = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, Block) else layer(x)
                saved.append(x)
        for name, layer in self.dec.items():
            if "aux_norm" in name:
                x = F.silu(layer(x))
            elif "aux_conv" in name:
                x = layer(x)
            else:
                x = layer(torch.cat([x, saved.pop()], dim=1) if "block" in name else x, emb)
        return x if self.kind != "adm" else self.out_conv(F.silu(self.out_norm(x)))
