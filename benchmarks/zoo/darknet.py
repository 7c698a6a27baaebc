"""Networks in the darknet format: a ``.cfg`` read into sections, these built into modules, ``.weights`` read into them.

Knows the layers that one-stage detectors of the YOLO family use; NMS is in `detection`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Darknet", "Section", "load_weights", "parse_sections"]

Section = tuple[str, dict[str, str]]
"""Kind and options of one layer; the first of a network is ``("net", ...)``."""


def parse_sections(text: str) -> list[Section]:
    r"""Read a darknet configuration.

    Args:
        text: The contents of a ``.cfg`` file.

    Returns:
        Its sections in order.

    Raises:
        ValueError: A line is neither a section, an option nor a comment.

    Examples:
        >>> parse_sections("[net]\nwidth = 320  # pixels")
        [('net', {'width': '320'})]
    """
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content.startswith("[") and content.endswith("]"):
            sections.append((content[1:-1], {}))
        elif content:
            name, equals, value = content.partition("=")
            if not equals or not sections:
                raise ValueError(f"line {number}: {content!r} is no option of a section; expected NAME=VALUE")
            sections[-1][1][name.strip()] = value.strip()
    return sections


class Sum(nn.Module):
    """A shortcut: adds two feature maps."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add them."""
        return x + y


class Route(nn.Module):
    """Puts feature maps side by side along the channels; one alone is passed on."""

    def forward(self, *features: Tensor) -> Tensor:
        """Put them side by side."""
        return features[0] if len(features) == 1 else torch.cat(features, 1)


class Boxes(nn.Module):
    """A detection layer: raw maps to boxes, in parts of the image, with their scores.

    Args:
        anchors: Width and height of each anchor, in pixels of the network's input.
        num_classes: Number of classes.
        size: Width and height of the network's input, in pixels.

    Shapes:
        ``(batch, anchors * (5 + classes), height, width)`` to ``(batch, anchors * height * width, 5 + classes)``:
        center x and y, width, height, objectness, class probabilities.
    """

    def __init__(self, anchors: list[tuple[float, float]], num_classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.tensor(anchors) / torch.tensor(size), persistent=False)
        self.num_values = 5 + num_classes

    def forward(self, raw: Tensor) -> Tensor:
        """Decode the maps."""
        _, _, height, width = raw.shape
        values = raw.unflatten(1, (-1, self.num_values)).permute(0, 1, 3, 4, 2)
        rows = torch.arange(height, device=raw.device).view(-1, 1)
        columns = torch.arange(width, device=raw.device).view(1, -1)
        x = (values[..., 0].sigmoid() + columns) / width
        y = (values[..., 1].sigmoid() + rows) / height
        sides = values[..., 2:4].exp() * self.anchors.view(1, -1, 1, 1, 2)
        boxes = torch.cat([x.unsqueeze(-1), y.unsqueeze(-1), sides, values[..., 4:].sigmoid()], -1)
        return boxes.flatten(1, 3)


class Darknet(nn.Module):
    """A network of darknet sections.

    Args:
        sections: What `parse_sections` returned, or the same made by hand.

    Raises:
        ValueError: A section is of a kind that is not known here.

    Shapes:
        Images ``(batch, channels, height, width)`` to boxes ``(batch, boxes, 5 + classes)`` of all detection layers.
    """

    def __init__(self, sections: list[Section]) -> None:
        super().__init__()
        net = sections[0][1]
        self.size = int(net["width"]), int(net["height"])
        self.layers = nn.ModuleList()
        self.sources: list[list[int]] = []
        channels: list[int] = []
        for index, (kind, options) in enumerate(sections[1:]):
            sources = _sources(kind, options, index)
            given = [channels[source] if source >= 0 else int(net["channels"]) for source in sources]
            layer, made = self._layer(kind, options, given)
            self.layers.append(layer)
            self.sources.append(sources)
            channels.append(made)
        self.detections = [index for index, layer in enumerate(self.layers) if isinstance(layer, Boxes)]

    def _layer(self, kind: str, options: dict[str, str], given: list[int]) -> tuple[nn.Module, int]:
        """One layer and the number of its channels."""
        if kind == "convolutional":
            return _convolution(options, given[0]), int(options["filters"])
        if kind == "maxpool":
            size = int(options["size"])
            return nn.MaxPool2d(size, int(options["stride"]), size // 2), given[0]
        if kind == "upsample":
            return nn.Upsample(scale_factor=int(options["stride"])), given[0]
        if kind == "dropout":
            return nn.Dropout(float(options["probability"])), given[0]
        if kind == "shortcut":
            return Sum(), given[0]
        if kind == "route":
            return Route(), sum(given)
        if kind == "yolo":
            numbers = [float(number) for number in options["anchors"].split(",")]
            pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
            chosen = [pairs[int(index)] for index in options["mask"].split(",")]
            return Boxes(chosen, int(options["classes"]), self.size), given[0]
        raise ValueError(f"a section of kind '{kind}' is not known; expected the layers of a YOLO-Fastest")

    def forward(self, images: Tensor) -> Tensor:
        """Find boxes."""
        made: list[Tensor] = []
        for layer, sources in zip(self.layers, self.sources, strict=True):
            made.append(layer(*[made[source] if source >= 0 else images for source in sources]))
        return torch.cat([made[index] for index in self.detections], 1)


def _sources(kind: str, options: dict[str, str], index: int) -> list[int]:
    """Layers that a layer reads: -1 for the image."""
    if kind == "route":
        named = [int(number) for number in options["layers"].split(",")]
    elif kind == "shortcut":
        named = [-1, int(options["from"])]
    else:
        named = [-1]
    return [index + number if number < 0 else number for number in named]


def _convolution(options: dict[str, str], channels: int) -> nn.Sequential:
    """Convolution, BatchNorm if asked for, activation."""
    size, normalize = int(options["size"]), options.get("batch_normalize") == "1"
    padding = size // 2 if options.get("pad") == "1" else 0
    filters, stride, groups = int(options["filters"]), int(options["stride"]), int(options.get("groups", "1"))
    layers: list[nn.Module] = [nn.Conv2d(channels, filters, size, stride, padding, groups=groups, bias=not normalize)]
    if normalize:
        layers.append(nn.BatchNorm2d(filters, eps=1e-6))
    if options["activation"] == "leaky":
        layers.append(nn.LeakyReLU(0.1, inplace=True))
    return nn.Sequential(*layers)


@torch.no_grad()
def load_weights(network: Darknet, path: Path) -> None:
    """Read a darknet ``.weights`` file into a network.

    Args:
        network: The network, whose convolutions are filled.
        path: The file.

    Raises:
        ValueError: The file holds fewer or more numbers than the network.
    """
    data = path.read_bytes()
    major, minor, _ = struct.unpack_from("<3i", data)
    header = 12 + (8 if major * 10 + minor >= 2 else 4)
    values = torch.from_numpy(np.frombuffer(data, "<f4", offset=header).copy())
    used = 0
    for target in _in_file_order(network):
        part = values[used : used + target.numel()]
        if len(part) != target.numel():
            raise ValueError(f"'{path.name}' ends after {len(values)} numbers; the network needs more of them")
        target.copy_(part.view_as(target))
        used += target.numel()
    if used != len(values):
        raise ValueError(f"'{path.name}' holds {len(values)} numbers, the network {used}; they do not belong together")


def _in_file_order(network: Darknet) -> list[Tensor]:
    """Biases, scales, means, variances and kernels, layer by layer, as darknet writes them."""
    targets: list[Tensor] = []
    for layer in network.layers:
        if not isinstance(layer, nn.Sequential):
            continue
        kernel, norm = layer[0], layer[1] if len(layer) > 1 else None
        if isinstance(norm, nn.BatchNorm2d):
            targets += [norm.bias, norm.weight, norm.running_mean, norm.running_var, kernel.weight]
        else:
            targets += [kernel.bias, kernel.weight]
    return targets
