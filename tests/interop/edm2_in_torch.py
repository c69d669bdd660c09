"""EDM2's network and its preconditioning's head written down in PyTorch from their description, with the names of checkpoints.

Written for comparison, apart from the library: channels first, kernels (out, in, height, width), heads cut out of one array.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def unit(x, dim):
    return x / (1e-4 + x.square().mean(dim, keepdim=True).sqrt())


def mix(a, b, t):
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def silu(x):
    return F.silu(x) / 0.596


class Conv(nn.Module):
    def __init__(self, inputs, outputs, *kernel):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *kernel))

    def forward(self, x, gain=1):
        weight = unit(self.weight, tuple(range(1, self.weight.ndim))) * (gain / math.sqrt(self.weight[0].numel()))
        return x @ weight.t() if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Fourier(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x):
        return math.sqrt(2) * (x[:, None] * self.freqs + self.phases).cos()


class Block(nn.Module):
    def __init__(self, inputs, outputs, wide, flavour, resample=None, head=0):
        super().__init__()
        self.flavour, self.resample, self.heads = flavour, resample, outputs // head if head else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = Conv(outputs if flavour == "enc" else inputs, outputs, 3, 3)
        self.emb_linear = Conv(wide, outputs)
        self.conv_res1 = Conv(outputs, outputs, 3, 3)
        self.conv_skip = Conv(inputs, outputs, 1, 1) if inputs != outputs else None
        self.attn_qkv = Conv(outputs, 3 * outputs, 1, 1) if head else None
        self.attn_proj = Conv(outputs, outputs, 1, 1) if head else None

    def forward(self, x, emb):
        if self.resample:
            x = F.avg_pool2d(x, 2) if self.resample == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
        if self.flavour == "enc":
            x = unit(self.conv_skip(x) if self.conv_skip else x, 1)
        y = self.conv_res0(silu(x))
        y = self.conv_res1(silu(y * (self.emb_linear(emb, self.emb_gain) + 1)[:, :, None, None]))
        if self.flavour == "dec" and self.conv_skip:
            x = self.conv_skip(x)
        x = mix(x, y, 0.3)
        if self.heads:  # head by head, channel by channel: its query, key and value side by side
            parts = self.attn_qkv(x).reshape(len(x), self.heads, -1, 3, x.shape[2] * x.shape[3])
            query, key, value = unit(parts, 2).unbind(3)
            weight = torch.softmax(query.transpose(2, 3) @ key / math.sqrt(query.shape[2]), -1)
            x = mix(x, self.attn_proj((value @ weight.transpose(2, 3)).reshape(x.shape)), 0.3)
        return x.clip(-256, 256)


class UNet(nn.Module):
    def __init__(self, size, channels, multipliers, blocks, attention, head, classes=0, inputs=3):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        wide, self.classes = max(widths), classes
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier, self.emb_noise = Fourier(widths[0]), Conv(widths[0], wide)
        self.emb_label = Conv(classes, wide) if classes else None
        self.enc, self.dec, now, saved = nn.ModuleDict(), nn.ModuleDict(), inputs + 1, []
        for level, width in enumerate(widths):
            here = size >> level
            if level:
                self.enc[f"{here}x{here}_down"] = Block(now, now, wide, "enc", "down")
            else:
                self.enc[f"{here}x{here}_conv"], now = Conv(now, width, 3, 3), width
            saved.append(now)
            for index in range(blocks):
                self.enc[f"{here}x{here}_block{index}"] = Block(now, width, wide, "enc", None, head * (here in attention))
                now = width
                saved.append(now)
        for level, width in reversed(list(enumerate(widths))):
            here = size >> level
            if level == len(widths) - 1:
                self.dec[f"{here}x{here}_in0"] = Block(now, now, wide, "dec", None, head)
                self.dec[f"{here}x{here}_in1"] = Block(now, now, wide, "dec")
            else:
                self.dec[f"{here}x{here}_up"] = Block(now, now, wide, "dec", "up")
            for index in range(blocks + 1):
                inner = Block(now + saved.pop(), width, wide, "dec", None, head * (here in attention))
                self.dec[f"{here}x{here}_block{index}"], now = inner, width
        self.out_conv = Conv(now, inputs, 3, 3)

    def forward(self, x, noise, labels=None):
        emb = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label:
            code = F.one_hot(labels.long(), self.classes + 1)[:, : self.classes].float()  # the label beyond has no code
            emb = mix(emb, self.emb_label(code * math.sqrt(self.classes)), 0.5)
        emb, x, saved = silu(emb), torch.cat([x, torch.ones_like(x[:, :1])], 1), []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, emb)
            saved.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                skip = saved.pop()
                scale = math.sqrt((x.shape[1] + skip.shape[1]) / 2)
                x = torch.cat([x * scale / math.sqrt(x.shape[1]), skip * scale / math.sqrt(skip.shape[1])], 1)
            x = layer(x, emb)
        return self.out_conv(x, self.out_gain)


class Precond(nn.Module):
    """What is saved; called as the network inside, for the uncertainty see `log_variance`."""

    def __init__(self, **fields):
        super().__init__()
        self.unet, self.logvar_fourier, self.logvar_linear = UNet(**fields), Fourier(128), Conv(128, 1)

    def forward(self, x, noise, labels=None):
        return self.unet(x, noise, labels)

    def log_variance(self, noise):
        return self.logvar_linear(self.logvar_fourier(noise))[:, 0]
