"""Networks for sound: recognizers, keyword spotters, one that tells speakers apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, Inputs
from benchmarks.zoo.bcresnet import bcresnet2
from benchmarks.zoo.library_shim import import_torchvision

__all__ = ["SPEECH"]


class DeepSpeech(nn.Module):
    """Convolutions over a spectrogram, recurrent layers over time, log probabilities for CTC.

    Args:
        channels: Channels of the convolutions.
        hidden: Size of the recurrent layers, each direction.
        bands: Frequencies of the spectrogram; a multiple of 4.
        num_symbols: Number of symbols, blank included.

    Shapes:
        Spectrograms ``(batch, bands, time)`` to log probabilities ``(batch, time / 2, symbols)``.
    """

    def __init__(self, channels: int, hidden: int, bands: int, num_symbols: int) -> None:
        super().__init__()
        self.conv1 = self._convolution(1, channels, (2, 2))
        self.conv2 = self._convolution(channels, channels, (2, 1))
        self.recurrent1 = nn.GRU(channels * bands // 4, hidden, batch_first=True, bidirectional=True)
        self.recurrent2 = nn.GRU(2 * hidden, hidden, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * hidden)
        self.symbols = nn.Linear(2 * hidden, num_symbols)

    @staticmethod
    def _convolution(in_channels: int, channels: int, stride: tuple[int, int]) -> nn.Sequential:
        conv = nn.Conv2d(in_channels, channels, (11, 11), stride, padding=5, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.Hardtanh(0, 20, inplace=True))

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Score the symbols at every moment."""
        y = self.conv2(self.conv1(spectrograms.unsqueeze(1)))
        y = y.flatten(1, 2).transpose(1, 2)
        y, _ = self.recurrent1(y)
        y, _ = self.recurrent2(y)
        return self.symbols(self.norm(y)).log_softmax(-1)


class XVector(nn.Module):
    """Dilated convolutions over time, then mean and deviation over all of it: an embedding of the speaker.

    Args:
        bands: Frequencies of the spectrogram.
        width: Channels.
        size: Length of the embedding.

    Shapes:
        Spectrograms ``(batch, bands, time)`` to embeddings ``(batch, size)``.
    """

    def __init__(self, bands: int, width: int, size: int) -> None:
        super().__init__()
        self.frame1 = self._frame(bands, width, 5, 1)
        self.frame2 = self._frame(width, width, 3, 2)
        self.frame3 = self._frame(width, 3 * width, 3, 3)
        self.segment = nn.Linear(6 * width, size)

    @staticmethod
    def _frame(in_channels: int, channels: int, kernel: int, dilation: int) -> nn.Sequential:
        conv = nn.Conv1d(in_channels, channels, kernel, dilation=dilation)
        return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm1d(channels))

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Embed the speaker."""
        y = self.frame3(self.frame2(self.frame1(spectrograms)))
        return self.segment(torch.cat([y.mean(2), y.std(2)], 1))


def _wav2vec2(reduced: bool) -> Any:
    import_torchvision()
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 64, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    small |= {"conv_dim": (16,) * 3, "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "vocab_size": 12}
    return Wav2Vec2ForCTC(Wav2Vec2Config(**(small if reduced else {})))


def _waveforms(reduced: bool, batch: int) -> Inputs:
    length = 800 if reduced else 16_000
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length // 2 :] = 0  # the first of them is half as long
    return Inputs(kwargs={"input_values": torch.randn(batch, length) * mask, "attention_mask": mask})


def _whisper(reduced: bool) -> Any:
    import_torchvision()
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    small: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
    small |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 50}
    small |= {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(use_cache=False, **({**small, **tokens} if reduced else {}))
    return WhisperForConditionalGeneration(config)


def _spectrograms_and_words(reduced: bool, batch: int) -> Inputs:
    bands, length, words = (8, 32, 50) if reduced else (80, 3000, 51_865)
    tokens = torch.randint(0, words, (batch, 6))
    return Inputs(kwargs={"input_features": torch.randn(batch, bands, length), "decoder_input_ids": tokens})


def _spectrograms(full: tuple[int, int], reduced: tuple[int, int], channels: int | None = None) -> Any:
    def sample(small: bool, batch: int) -> Inputs:
        shape = reduced if small else full
        return Inputs((torch.randn(batch, *(() if channels is None else (channels,)), *shape),))

    return sample


SPEECH = (
    Architecture(
        "DeepSpeech-like, CTC",
        "own",
        lambda reduced: DeepSpeech(4, 8, 16, 12) if reduced else DeepSpeech(32, 512, 160, 29),
        _spectrograms((160, 200), (16, 24)),
        ("conv2", "recurrent1"),
    ),
    Architecture(
        "BC-ResNet-2",
        "own",
        bcresnet2,
        _spectrograms((40, 32), (40, 16), channels=1),
        ("t2", "t3"),
        weights="real",
    ),
    Architecture(
        "X-vector",
        "own",
        lambda reduced: XVector(8, 16, 8) if reduced else XVector(24, 512, 512),
        _spectrograms((24, 200), (8, 40)),
        ("frame2", "segment"),
    ),
    Architecture(
        "wav2vec 2.0, CTC",
        "transformers",
        _wav2vec2,
        _waveforms,
        ("wav2vec2.feature_projection", "wav2vec2.encoder.layers.1"),
    ),
    Architecture(
        "Whisper encoder-decoder",
        "transformers",
        _whisper,
        _spectrograms_and_words,
        ("model.encoder.layers.1", "model.decoder.layers.1"),
    ),
)
