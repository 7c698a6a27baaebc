"""Networks that generate: diffusion U-Nets, which take a time beside the picture, and a variational autoencoder."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, Inputs
from benchmarks.zoo.library_shim import import_torchvision

__all__ = ["GENERATIVE"]


class TimedBlock(nn.Module):
    """A residual block that the time shifts and scales.

    Args:
        in_channels: Channels that enter.
        channels: Channels that leave.
        time_size: Length of the embedded time.
    """

    def __init__(self, in_channels: int, channels: int, time_size: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, in_channels), nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time = nn.Linear(time_size, 2 * channels)
        self.norm2, self.conv2 = nn.GroupNorm(4, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Run the block."""
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        y = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(y))


class TimedUNet(nn.Module):
    """A U-Net with a time, as diffusion models use it.

    Args:
        width: Channels of the first level.

    Shapes:
        Pictures ``(batch, 3, height, width)`` and times ``(batch,)`` to noise of the pictures' shape.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 4 * width
        self.embed = nn.Sequential(nn.Linear(width, size), nn.SiLU(), nn.Linear(size, size))
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down1 = TimedBlock(width, width, size)
        self.down2 = TimedBlock(width, 2 * width, size)
        self.middle = TimedBlock(2 * width, 2 * width, size)
        self.up2 = TimedBlock(4 * width, width, size)
        self.up1 = TimedBlock(2 * width, width, size)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)
        self.width = width

    def forward(self, sample: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Predict the noise."""
        half = self.width // 2
        rates = torch.exp(torch.arange(half) * (-math.log(10_000) / half))
        angles = timestep[:, None].float() * rates
        time = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        first = self.down1(self.conv_in(sample), time)
        second = self.down2(F.avg_pool2d(first, 2), time)
        y = self.middle(F.avg_pool2d(second, 2), time)
        y = self.up2(torch.cat([F.interpolate(y, scale_factor=2), second], 1), time)
        y = self.up1(torch.cat([F.interpolate(y, scale_factor=2), first], 1), time)
        return {"sample": self.conv_out(F.silu(y))}


class Vae(nn.Module):
    """A variational autoencoder that is given its noise, so that the same inputs give the same picture.

    Args:
        width: Channels of the first level.

    Shapes:
        Pictures ``(batch, 3, height, width)`` and noise ``(batch, 8, height / 4, width / 4)`` to three tensors: the
        picture, the mean and the logarithm of the variance.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder1 = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), nn.SiLU())
        self.encoder2 = nn.Sequential(nn.Conv2d(width, 2 * width, 4, 2, 1), nn.SiLU())
        self.moments = nn.Conv2d(2 * width, 16, 1)
        self.decoder1 = nn.Sequential(nn.ConvTranspose2d(8, width, 4, 2, 1), nn.SiLU())
        self.decoder2 = nn.ConvTranspose2d(width, 3, 4, 2, 1)

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, sample, decode."""
        mean, log_variance = self.moments(self.encoder2(self.encoder1(pictures))).chunk(2, 1)
        y = self.decoder1(mean + noise * (log_variance / 2).exp())
        return self.decoder2(y), mean, log_variance


def _pictures_and_times(reduced: bool, batch: int) -> Inputs:
    side = 16 if reduced else 64
    return Inputs((torch.randn(batch, 3, side, side), torch.randint(0, 1000, (batch,))))


def _pictures_and_noise(reduced: bool, batch: int) -> Inputs:
    side = 16 if reduced else 64
    return Inputs((torch.randn(batch, 3, side, side), torch.randn(batch, 8, side // 4, side // 4)))


def _diffusers(reduced: bool) -> Any:
    import_torchvision()
    from diffusers import UNet2DModel

    channels = (16, 32) if reduced else (64, 128, 256)
    down = ("DownBlock2D", *("AttnDownBlock2D",) * (len(channels) - 1))
    up = (*("AttnUpBlock2D",) * (len(channels) - 1), "UpBlock2D")
    return UNet2DModel(
        sample_size=16 if reduced else 64,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=4 if reduced else 32,
    )


GENERATIVE = (
    Architecture(
        "Diffusion U-Net with a time",
        "own",
        lambda reduced: TimedUNet(8 if reduced else 64),
        _pictures_and_times,
        ("down2", "middle"),
    ),
    Architecture(
        "UNet2DModel",
        "diffusers",
        _diffusers,
        _pictures_and_times,
        ("down_blocks.1", "mid_block"),
        max_batch=63,  # it lays larger ones out otherwise (`if hidden_states.shape[0] >= 64`), which a program cannot
    ),
    Architecture(
        "Variational autoencoder",
        "own",
        lambda reduced: Vae(8 if reduced else 64),
        _pictures_and_noise,
        ("encoder2", "decoder1"),
    ),
)
