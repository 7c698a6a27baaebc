"""Object detectors: YOLO-Fastest with its real weights, and an SSD-like one with and without its data-dependent end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, images
from benchmarks.zoo.darknet import Darknet, Section, load_weights

__all__ = ["DETECTION", "Ssd", "best_boxes", "ssd_with_nms", "ssd_with_nms_reduced", "yolo_fastest"]

_ANCHORS = "12, 18,  37, 49,  52,132, 115, 73, 119,199, 242,238"
# Times, channels inside, stride, channels out, with a shortcut around it.
_BLOCKS = (
    (1, 8, 1, 4, False), (1, 8, 1, 4, True),
    (1, 24, 2, 8, False), (2, 32, 1, 8, True),
    (1, 32, 2, 8, False), (2, 48, 1, 8, True),
    (1, 48, 1, 16, False), (4, 96, 1, 16, True),
    (1, 96, 2, 24, False), (4, 136, 1, 24, True),
    (1, 136, 2, 48, False), (5, 224, 1, 48, True),
)  # fmt: skip


def _conv(
    filters: int, size: int, *, stride: int = 1, groups: int = 1, leaky: bool = True, norm: bool = True
) -> Section:
    options = {"filters": filters, "size": size, "stride": stride, "groups": groups, "pad": 1}
    options |= {"batch_normalize": int(norm)}
    activation = "leaky" if leaky else "linear"
    return "convolutional", {**{name: str(value) for name, value in options.items()}, "activation": activation}


def yolo_fastest_sections(size: int = 320) -> list[Section]:
    """YOLO-Fastest 1.1 as darknet sections, for where its own configuration file is not at hand.

    Args:
        size: Side of the images, in pixels.

    Returns:
        The sections.

    Source: dog-qiuqiu/Yolo-Fastest, yolo-fastest-1.1.cfg.
    """
    sections: list[Section] = [("net", {"width": str(size), "height": str(size), "channels": "3"})]
    sections.append(_conv(8, 3, stride=2))
    for times, inside, stride, out, shortcut in _BLOCKS:
        block = [_conv(inside, 1), _conv(inside, 3, stride=stride, groups=inside), _conv(out, 1, leaky=False)]
        around: list[Section] = [("dropout", {"probability": ".15"}), ("shortcut", {"from": "-5"})]
        sections += (block + (around if shortcut else [])) * times
    sections += [_pool(3), ("route", {"layers": "-2"}), _pool(5), ("route", {"layers": "-4"}), _pool(9)]
    sections += [("route", {"layers": "-1,-3,-5,-6"}), _conv(96, 1), *_tower(96), _yolo("3,4,5")]
    sections += [("route", {"layers": "-7"}), ("upsample", {"stride": "2"}), ("route", {"layers": "-1,80"})]
    return [*sections, *_tower(120), _yolo("0,1,2")]


def _pool(size: int) -> Section:
    return "maxpool", {"size": str(size), "stride": "1"}


def _tower(channels: int) -> list[Section]:
    """What leads to one detection layer."""
    ends = [_conv(channels, 5, groups=channels), _conv(channels, 1, leaky=False)]
    return [*ends, *ends, _conv(255, 1, leaky=False, norm=False)]


def _yolo(mask: str) -> Section:
    return "yolo", {"mask": mask, "anchors": _ANCHORS, "classes": "80"}


def yolo_fastest(reduced: bool = False) -> nn.Module:
    """YOLO-Fastest 1.1: with its real weights where COMPOFF_DATA holds them, else with random ones.

    Args:
        reduced: Whether for images of 64 pixels and with random weights.

    Returns:
        The network.
    """
    network = Darknet(yolo_fastest_sections(64 if reduced else 320))
    path = _real_weights()
    if path is not None and not reduced:
        load_weights(network, path)
    return network


def _real_weights() -> Path | None:
    folder = os.environ.get("COMPOFF_DATA")
    path = Path(folder, "weights", "yolo-fastest-1.1.weights") if folder else None
    return path if path is not None and path.is_file() else None


def best_boxes(boxes: Tensor, scores: Tensor, *, overlap: float, limit: int) -> list[int]:
    """Greedy non-maximum suppression.

    Args:
        boxes: Boxes of one image, as left, top, right, bottom.
        scores: Their scores.
        overlap: Intersection over union above which the weaker of two boxes is dropped.
        limit: Most boxes to keep.

    Returns:
        Indices of the boxes that stay, the best first.
    """
    kept: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in scores.argsort(descending=True).tolist():
        others = boxes[kept]
        corner = torch.minimum(others[:, 2:], boxes[index, 2:]) - torch.maximum(others[:, :2], boxes[index, :2])
        shared = corner.clamp(min=0).prod(1)
        if not kept or float((shared / (areas[kept] + areas[index] - shared)).max()) <= overlap:
            kept.append(index)
        if len(kept) == limit:
            break
    return kept


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


class Ssd(nn.Module):
    """An SSD-like detector: boxes and scores from three scales of one trunk, each scale read by heads of its own.

    Args:
        width: Channels of the first stage.
        num_classes: Number of classes, background included.

    Shapes:
        Images ``(batch, 3, height, width)`` to boxes ``(batch, anchors, 4)`` and scores ``(batch, anchors, classes)``.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, width, 2), _block(width, 2 * width, 2))
        self.stages = nn.ModuleList(
            nn.Sequential(_block(size, 2 * size, 2), _block(2 * size, 2 * size, 1)) for size in (2 * width, 4 * width)
        )
        self.extra = _block(8 * width, 8 * width, 2)
        sizes = (4 * width, 8 * width, 8 * width)
        self.boxes = nn.ModuleList(nn.Conv2d(size, 4 * 4, 3, padding=1) for size in sizes)
        self.scores = nn.ModuleList(nn.Conv2d(size, 4 * num_classes, 3, padding=1) for size in sizes)
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Any:
        """Find boxes."""
        features = [self.stages[0](self.stem(images))]
        features.append(self.stages[1](features[-1]))
        features.append(self.extra(features[-1]))
        boxes = [_rows(head(y), 4) for head, y in zip(self.boxes, features, strict=True)]
        scores = [_rows(head(y), self.num_classes) for head, y in zip(self.scores, features, strict=True)]
        return {"boxes": torch.cat(boxes, 1), "scores": torch.cat(scores, 1).softmax(-1)}


def _rows(maps: Tensor, values: int) -> Tensor:
    """Maps of several anchors as one row an anchor."""
    return maps.unflatten(1, (-1, values)).permute(0, 1, 3, 4, 2).flatten(1, 3)


class SsdWithNms(Ssd):
    """The same with its data-dependent end: as many detections an image as there are."""

    def forward(self, images: Tensor) -> Any:
        """Find boxes and drop those that say the same."""
        raw = super().forward(images)
        found: list[dict[str, Tensor]] = []
        for boxes, scores in zip(raw["boxes"], raw["scores"], strict=True):
            best, labels = scores[:, 1:].max(1)
            corners = torch.cat([boxes[:, :2].sigmoid() - 0.1, boxes[:, :2].sigmoid() + 0.1], 1)
            kept = best_boxes(corners, best, overlap=0.5, limit=10)
            found.append({"boxes": corners[kept], "scores": best[kept], "labels": labels[kept]})
        return found


def ssd_with_nms() -> nn.Module:
    """The SSD with NMS as the server process builds it for its eager tail.

    Returns:
        The model, with the weights that the zoo's entry has.
    """
    return _named("SSD-like with NMS").build(reduced=False)


def ssd_with_nms_reduced() -> nn.Module:
    """The small instance of `ssd_with_nms`.

    Returns:
        The model.
    """
    return _named("SSD-like with NMS").build(reduced=True)


def _named(name: str) -> Architecture:
    return next(entry for entry in DETECTION if entry.name == name)


DETECTION = (
    Architecture(
        "YOLO-Fastest 1.1",
        "own",
        yolo_fastest,
        images(320, 64),
        ("layers.24", "layers.59", "layers.84"),
        weights="real",
    ),
    Architecture(
        "SSD-like",
        "own",
        lambda reduced: Ssd(8, 5) if reduced else Ssd(32, 21),
        images(256, 64),
        ("stages.1", "extra"),
    ),
    Architecture(
        "SSD-like with NMS",
        "own",
        lambda reduced: SsdWithNms(8, 5) if reduced else SsdWithNms(32, 21),
        images(256, 64),
        ("stages.0", "stages.1"),
        factories=("benchmarks.zoo.detection:ssd_with_nms", "benchmarks.zoo.detection:ssd_with_nms_reduced"),
    ),
)
