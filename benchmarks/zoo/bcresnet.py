"""BC-ResNet, a keyword spotter whose residual branches work on one mean over frequency, with its real weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["BcResNet", "bcresnet2", "log_mel", "mel_bands"]


class SubSpectralNorm(nn.Module):
    """BatchNorm with statistics of its own for each band of frequencies.

    Args:
        channels: Number of channels.
        bands: Number of bands.
    """

    def __init__(self, channels: int, bands: int = 5) -> None:
        super().__init__()
        self.bands = bands
        self.bn = nn.BatchNorm2d(channels * bands)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each band."""
        return self.bn(x.reshape(x.shape[0], -1, x.shape[2] // self.bands, x.shape[3])).reshape(x.shape)


def _temporal(channels: int, dilation: int) -> nn.Sequential:
    depthwise = nn.Conv2d(channels, channels, (1, 3), padding="same", groups=channels, dilation=(1, dilation))
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(channels), nn.SiLU(), nn.Conv2d(channels, channels, 1), nn.Dropout2d(0.1)
    )


class Normal(nn.Module):
    """A block that keeps its channels: identity, a branch over frequency, a branch over time broadcast to all of it."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        spectral = nn.Conv2d(channels, channels, (3, 1), padding="same", groups=channels)
        self.f2 = nn.Sequential(spectral, SubSpectralNorm(channels))
        self.f1 = _temporal(channels, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Add both branches."""
        y = self.f2(x)
        return (x + y + self.f1(y.mean(2, keepdim=True))).relu()


class Transition(nn.Module):
    """A block that changes the channels, and with a stride the frequencies."""

    def __init__(self, in_channels: int, channels: int, dilation: int, stride: int) -> None:
        super().__init__()
        spectral = nn.Conv2d(channels, channels, (3, 1), (stride, 1), (1, 0), groups=channels)
        pointwise = [nn.Conv2d(in_channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()]
        self.f2 = nn.Sequential(*pointwise, spectral, SubSpectralNorm(channels))
        self.f1 = _temporal(channels, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch over time."""
        y = self.f2(x)
        return (y + self.f1(y.mean(2, keepdim=True))).relu()


class BcResNet(nn.Module):
    """BC-ResNet.

    Args:
        scale: Multiple of BC-ResNet-1's channels.
        num_classes: Number of keywords.

    Shapes:
        Log mel spectrograms ``(batch, 1, 40, time)`` to log probabilities ``(batch, classes)``.

    Source:
        Kim et al., Broadcasted Residual Learning for Efficient Keyword Spotting (Interspeech 2021); module names of
        re9ulus/BC-ResNet.
    """

    def __init__(self, scale: int = 2, num_classes: int = 35) -> None:
        super().__init__()
        self.input_conv = nn.Conv2d(1, 16 * scale, 5, stride=(2, 1), padding=2)
        channels = 16 * scale
        for stage, (width, blocks, dilation, stride) in enumerate(
            [(8, 1, 1, 1), (12, 1, 2, 2), (16, 3, 4, 2), (20, 3, 8, 1)], start=1
        ):
            self.add_module(f"t{stage}", Transition(channels, width * scale, dilation, stride))
            channels = width * scale
            for block in range(1, blocks + 1):
                self.add_module(f"n{stage}{block}", Normal(channels, dilation))
        self.dw_conv = nn.Conv2d(channels, channels, 5, groups=channels // scale)
        self.onexone_conv = nn.Conv2d(channels, 32 * scale, 1)
        self.head_conv = nn.Conv2d(32 * scale, num_classes, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """Score every keyword."""
        y = mel
        for name, block in self.named_children():
            if name != "head_conv":
                y = block(y)
        return self.head_conv(y.mean(3, keepdim=True)).flatten(1).log_softmax(-1)


def bcresnet2(reduced: bool = False) -> nn.Module:
    """BC-ResNet-2 for 35 keywords: with its real weights where COMPOFF_DATA holds them, else with random ones.

    Args:
        reduced: Whether to build BC-ResNet-1 with random weights.

    Returns:
        The network.
    """
    network = BcResNet(1 if reduced else 2)
    folder = os.environ.get("COMPOFF_DATA")
    path = Path(folder, "weights", "speech_commands_bcresnet2.safetensors") if folder else None
    if path is not None and path.is_file() and not reduced:
        network.load_state_dict(load_file(path))
    return network


def log_mel(waveform: Tensor) -> Tensor:
    """The features that the weights were trained on: 40 mel bands, base-2 logarithm, window 1024, hop 512.

    Args:
        waveform: Samples at 16 kHz.

    Returns:
        Spectrograms.

    Shapes:
        waveform ``(batch, samples)``; result ``(batch, 1, 40, 1 + samples // 512)``.
    """
    window = torch.hann_window(1024, device=waveform.device)
    spectrum = torch.stft(waveform, 1024, 512, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum.abs().square()
    return (mel_bands().to(power) @ power + 1e-9).log2().unsqueeze(1)


def mel_bands(bands: int = 40, bins: int = 513, rate: int = 16_000) -> Tensor:
    """Triangles equally wide on the HTK mel scale."""
    edges = 700 * (10 ** (torch.linspace(0, _mel(rate / 2), bands + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, rate / 2, bins, dtype=torch.float64)
    left, center, right = (edges[start : start + bands, None] for start in range(3))
    rising, falling = (frequencies - left) / (center - left), (right - frequencies) / (right - center)
    return torch.minimum(rising, falling).clamp(min=0)


def _mel(frequency: float) -> float:
    return float(2595 * torch.log10(torch.tensor(1 + frequency / 700, dtype=torch.float64)))
