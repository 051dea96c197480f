"""A plain PyTorch MedMamba to compare with, written from the paper and the official tensor names.

As slow and literal as it can be: one step of the scan at a time, one direction after the other.
Autograd gives the gradients. Both blocks; no dropout, no stochastic depth.
"""

import torch
from torch import nn
from torch.nn import functional


def selective_scan(u, dt, A, B, C, D):
    """u, dt (b, d, l); A (d, n); B, C (b, n, l); D (d,). Returns (b, d, l)."""
    h = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        decay = torch.exp(dt[:, :, t, None] * A)
        h = decay * h + (dt[:, :, t] * u[:, :, t])[:, :, None] * B[:, None, :, t]
        outputs.append((h * C[:, None, :, t]).sum(2) + D * u[:, :, t])
    return torch.stack(outputs, 2)


class SS2D(nn.Module):
    def __init__(self, channels, d_state):
        super().__init__()
        inner, rank = 2 * channels, -(-channels // 16)
        self.sizes = [rank, d_state, d_state]
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.zeros(4, sum(self.sizes), inner))
        self.dt_projs_weight = nn.Parameter(torch.zeros(4, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.zeros(4, inner))
        self.A_logs = nn.Parameter(torch.zeros(4 * inner, d_state))
        self.Ds = nn.Parameter(torch.zeros(4 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x):
        x, z = self.in_proj(x).chunk(2, -1)
        x = functional.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        y = sum(self.direction(x, k) for k in range(4)).permute(0, 2, 3, 1)
        return self.out_proj(self.out_norm(y) * functional.silu(z))

    def direction(self, image, k):
        """Directions 0 and 2 read rows, 1 and 3 columns; 2 and 3 from the end. (b, d, h, w)."""
        if k % 2:
            image = image.transpose(2, 3)
        u = image.flatten(2)
        if k >= 2:
            u = u.flip(2)
        low_rank, B, C = torch.split(self.x_proj_weight[k] @ u, self.sizes, 1)
        dt = functional.softplus(
            self.dt_projs_weight[k] @ low_rank + self.dt_projs_bias[k][:, None]
        )
        A = -torch.exp(self.A_logs.chunk(4)[k])
        y = selective_scan(u, dt, A, B, C, self.Ds.chunk(4)[k])
        if k >= 2:
            y = y.flip(2)
        y = y.reshape(image.shape)
        return y.transpose(2, 3) if k % 2 else y


def conv_branch(half, *, first_norm, last_relu):
    def norm():
        return nn.BatchNorm2d(half)

    layers = [norm()] if first_norm else []
    for _ in range(2):
        layers += [nn.Conv2d(half, half, 3, padding=1), norm(), nn.ReLU()]
    layers += [nn.Conv2d(half, half, 1)]
    return nn.Sequential(*layers, *([nn.ReLU()] if last_relu else []))


def on_channels_first(module, x):
    return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SSConvSSM(nn.Module):
    def __init__(self, channels, d_state):
        super().__init__()
        half = channels // 2
        self.ln_1 = nn.LayerNorm(half)
        self.self_attention = SS2D(half, d_state)
        self.conv33conv33conv11 = conv_branch(half, first_norm=True, last_relu=True)

    def forward(self, x):
        left, right = x.chunk(2, -1)
        left = on_channels_first(self.conv33conv33conv11, left)
        right = self.self_attention(self.ln_1(right))
        mixed = torch.empty_like(x)
        mixed[..., 0::2] = left
        mixed[..., 1::2] = right
        return mixed + x


class ConvSSM(nn.Module):
    def __init__(self, channels, d_state):
        super().__init__()
        half = channels // 2
        self.ln_1 = nn.LayerNorm(half)
        self.self_attention = SS2D(half, d_state)
        self.conv33conv33conv11 = conv_branch(half, first_norm=False, last_relu=False)
        self.finalconv11 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        left, right = x.chunk(2, -1)
        left = on_channels_first(self.conv33conv33conv11, left)
        right = right + self.self_attention(self.ln_1(right))
        return x + on_channels_first(self.finalconv11, torch.cat([left, right], -1))


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x):
        h, w = x.shape[1] // 2, x.shape[2] // 2
        x = x[:, : 2 * h, : 2 * w]
        # (b, h, row, w, column, c): of a pixel's neighbours the row changes fastest.
        x = x.reshape(x.shape[0], h, 2, w, 2, -1).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.flatten(3)))


class PatchEmbed(nn.Module):
    def __init__(self, in_channels, channels, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images):
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Layer(nn.Module):
    def __init__(self, block, channels, depth, d_state, *, last):
        super().__init__()
        self.blocks = nn.ModuleList([block(channels, d_state) for _ in range(depth)])
        if not last:
            self.downsample = Downsample(channels)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class MedMamba(nn.Module):
    """Images (b, c, h, w) to logits; takes the fields of a `MedMambaConfig`."""

    def __init__(self, config):
        super().__init__()
        block = {"ss_conv_ssm": SSConvSSM, "conv_ssm": ConvSSM}[config.block]
        self.patch_embed = PatchEmbed(config.in_channels, config.dims[0], config.patch_size)
        self.layers = nn.ModuleList(
            Layer(block, channels, depth, config.d_state, last=channels == config.dims[-1])
            for channels, depth in zip(config.dims, config.depths, strict=True)
        )
        self.head = nn.Linear(config.dims[-1], config.num_classes)

    def forward(self, images):
        x = self.patch_embed(images)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((1, 2)))
