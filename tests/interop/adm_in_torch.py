"""The U-Net of improved DDPM and ADM written down in PyTorch from its description, with the names of its checkpoints.

Written for comparison, apart from the library: channels first, layers in lists, heads cut by reshaping whole arrays.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, width, embedding, out, groups, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if out == width else nn.Conv2d(width, out, 1)

    def resized(self, x):
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x, emb):
        norm, act, conv = self.in_layers
        h = conv(self.resized(act(norm(x))))
        told = self.emb_layers(emb)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resized(x)) + h


class Attention(nn.Module):
    def __init__(self, width, heads, groups, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, emb=None):
        flat = x.flatten(2)
        batch, width, length = flat.shape
        each = width // self.heads
        stacked = self.qkv(self.norm(flat))
        if self.new_order:  # first all queries, then all keys, then all values
            query, key, value = (part.reshape(batch * self.heads, each, length) for part in stacked.chunk(3, dim=1))
        else:  # head by head its query, key and value
            query, key, value = stacked.reshape(batch * self.heads, 3 * each, length).split(each, dim=1)
        scale = each**-0.25
        weight = torch.softmax(torch.bmm((query * scale).transpose(1, 2), key * scale), dim=-1)
        mixed = torch.bmm(value, weight.transpose(1, 2)).reshape(batch, width, length)
        return x + self.proj_out(mixed).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, emb):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, emb):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x, emb):
        return super().forward(x)


class UNet(nn.Module):
    def __init__(
        self, size, channels, multipliers, blocks, attention, heads=1, head_channels=None, groups=4, scale_shift=True,
        resblocks=False, new_order=False, classes=0, inputs=3, outputs=6,
    ):  # fmt: skip
        super().__init__()
        self.channels, wide = channels, 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, wide), nn.SiLU(), nn.Linear(wide, wide))
        if classes:
            self.label_emb = nn.Embedding(classes, wide)
        residual = lambda a, b, resample=None: Residual(a, wide, b, groups, scale_shift, resample)  # noqa: E731
        attend = lambda width: Attention(width, width // head_channels if head_channels else heads, groups, new_order)  # noqa: E731
        now = int(channels * multipliers[0])
        self.input_blocks, saved = nn.ModuleList([nn.ModuleList([First(inputs, now, 3, padding=1)])]), [now]
        for level, multiplier in enumerate(multipliers):
            width, sees = int(channels * multiplier), size // 2**level in attention
            for _ in range(blocks):
                self.input_blocks.append(nn.ModuleList([residual(now, width), *([attend(width)] if sees else [])]))
                now = width
                saved.append(now)
            if level < len(multipliers) - 1:
                self.input_blocks.append(nn.ModuleList([residual(now, now, "down") if resblocks else Down(now)]))
                saved.append(now)
        self.middle_block = nn.ModuleList([residual(now, now), attend(now), residual(now, now)])
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            width, sees = int(channels * multiplier), size // 2**level in attention
            for index in range(blocks + 1):
                layers = [residual(now + saved.pop(), width), *([attend(width)] if sees else [])]
                if level and index == blocks:
                    layers.append(residual(width, width, "up") if resblocks else Up(width))
                self.output_blocks.append(nn.ModuleList(layers))
                now = width
        self.out = nn.Sequential(nn.GroupNorm(groups, now), nn.SiLU(), nn.Conv2d(now, outputs, 3, padding=1))

    def forward(self, x, times, labels=None):
        half = self.channels // 2
        angles = times[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        kept = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, emb)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        for layers in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in layers:
                x = layer(x, emb)
        return self.out(x)


class AttentionPool(nn.Module):
    def __init__(self, side, width, head_channels, classes):
        super().__init__()
        self.heads = width // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(width, side * side + 1))
        self.qkv_proj = nn.Conv1d(width, 3 * width, 1)
        self.c_proj = nn.Conv1d(width, classes, 1)

    def forward(self, x):
        batch, width, *_ = x.shape
        flat = x.flatten(2)
        tokens = torch.cat([flat.mean(dim=2, keepdim=True), flat], dim=2) + self.positional_embedding
        query, key, value = self.qkv_proj(tokens).reshape(batch, 3, self.heads, width // self.heads, -1).unbind(1)
        weight = torch.softmax(torch.einsum("bhdq,bhdk->bhqk", query, key) / math.sqrt(width // self.heads), dim=-1)
        mixed = torch.einsum("bhqk,bhdk->bhdq", weight, value).reshape(batch, width, -1)
        return self.c_proj(mixed)[:, :, 0]


class Classifier(UNet):
    """The encoder with a pool; the spatial pools see the mean of every part's output."""

    def __init__(self, *args, pool, head_channels, outputs, **kwargs):
        super().__init__(*args, head_channels=head_channels, **kwargs)
        del self.output_blocks
        size, channels, multipliers, *_ = args
        width, groups = int(channels * multipliers[-1]), kwargs.get("groups", 4)
        self.pool = pool
        if pool == "attention":
            side = size // 2 ** (len(multipliers) - 1)
            self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), AttentionPool(side, width, head_channels, outputs))
        elif pool == "adaptive":
            last = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, outputs, 1), nn.Flatten()]
            self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), *last)
        else:
            seen = self.seen(size)
            inner = [nn.ReLU()] if pool == "spatial" else [nn.GroupNorm(32, 2048), nn.SiLU()]
            self.out = nn.Sequential(nn.Linear(seen, 2048), *inner, nn.Linear(2048, outputs))

    def seen(self, size):
        with torch.no_grad():
            return sum(part.shape[1] for part in self.parts(torch.zeros(1, 3, size, size), torch.zeros(1)))

    def parts(self, x, times):
        half = self.channels // 2
        angles = times[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        found = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, emb)
            found.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        return [*found, x]

    def forward(self, x, times):
        parts = self.parts(x, times)
        if self.pool in ("attention", "adaptive"):
            return self.out(parts[-1])
        return self.out(torch.cat([part.mean(dim=(2, 3)) for part in parts], dim=1))
