"""Every test image, one by one, through each way of answering it: what came back, how many bytes, how long.

The ways: the whole network here; a picture to the whole network on the edge; a head here and its tail on the edge.
Knows sockets by what `Client` and `Remote` offer, and no tables.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compoff.demo.links import LINKS
from compoff.demo.pictures import encode_pixels
from compoff.wire.frames import OVERHEAD_BYTES
from compoff.wire.tensors import unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.demo.pictures import Form
    from compoff.demo.tasks import Task
    from compoff.device.remote import Remote
    from compoff.wire.client import Client

__all__ = ["Call", "Row", "Way", "compoff_call", "local_call", "measure", "picture_call"]

CALL_SECONDS = 30.0
"""Deadline of one call, in seconds."""

_WARM_UP = 5  # first calls of a way, whose times are not counted: programs and caches are cold


@dataclass(frozen=True)
class Call:
    """One image answered.

    Args:
        scores: The network's output for it.
        device_seconds: Time on the device: head and coder, or writing the picture, or the whole network, in seconds.
        edge_seconds: Time from sending to the answer over loopback, in seconds; 0 where nothing is sent.
        total_seconds: Time of the whole call, in seconds.
        bytes_up: Bytes sent, with the frame; 0 where nothing is sent.
        bytes_down: Bytes received, with the frame.
    """

    scores: Any
    device_seconds: float
    edge_seconds: float
    total_seconds: float
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True)
class Way:
    """One way of answering.

    Args:
        system: ``"local"``, ``"raw"``, ``"png"``, ``"jpeg"`` or ``"compoff"``.
        label: Its name in the table.
        call: Answers the image of an index.
        split: The split point, where there is one.
        quality: JPEG's quality, where there is one.
    """

    system: str
    label: str
    call: Callable[[int], Call]
    split: str | None = None
    quality: int | None = None


@dataclass(frozen=True)
class Row:
    """What one way costs, over all test images.

    Args:
        system: As of the way.
        label: As of the way.
        split: As of the way.
        quality: As of the way.
        accuracy: Share of images answered right, in percent.
        drop: Accuracy lost against the unmodified network on the same images, in points.
        drop_stderr: Its standard error, in points.
        agreement: Share of images on which both choose the same class, in percent.
        bytes_up: Mean bytes sent, with the frame.
        bytes_down: Mean bytes received, with the frame.
        device_ms: Median time on the device, in milliseconds.
        edge_ms: Median time from sending to the answer over loopback, in milliseconds.
        loopback_ms: Median time of the whole call, in milliseconds.
        link_ms: Time over each link by arithmetic, in milliseconds.
        images: Number of images.
    """

    system: str
    label: str
    split: str | None
    quality: int | None
    accuracy: float
    drop: float
    drop_stderr: float
    agreement: float
    bytes_up: float
    bytes_down: float
    device_ms: float
    edge_ms: float
    loopback_ms: float
    link_ms: dict[str, float] = field(default_factory=dict[str, float])
    images: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON can hold it.

        Returns:
            Plain values by name.
        """
        return asdict(self)


def measure(way: Way, labels: torch.Tensor, reference: list[int]) -> Row:
    """Answer every test image in one way.

    Args:
        way: The way.
        labels: Class of every image.
        reference: What the unmodified network chose for each.

    Returns:
        What the way costs.

    Raises:
        WireError: The second process or its socket failed.

    Source: this project.
    """
    for index in range(min(_WARM_UP, len(labels))):
        way.call(index)
    calls = [way.call(index) for index in range(len(labels))]
    chosen, right = np.array([int(np.argmax(call.scores)) for call in calls]), labels.numpy()
    before = np.array(reference)
    difference = 100.0 * ((before == right).astype(float) - (chosen == right).astype(float))
    device, edge, total = (
        float(np.median([getattr(call, name) for call in calls]))
        for name in ("device_seconds", "edge_seconds", "total_seconds")
    )
    up, down = (float(np.mean([getattr(call, name) for call in calls])) for name in ("bytes_up", "bytes_down"))
    return Row(
        system=way.system,
        label=way.label,
        split=way.split,
        quality=way.quality,
        accuracy=100 * float((chosen == right).mean()),
        drop=float(difference.mean()),
        drop_stderr=float(difference.std(ddof=1)) / math.sqrt(len(calls)) if len(calls) > 1 else 0.0,
        agreement=100 * float((chosen == before).mean()),
        bytes_up=up,
        bytes_down=down,
        device_ms=1000 * device,
        edge_ms=1000 * edge,
        loopback_ms=1000 * total,
        link_ms={link.name: 1000 * _over(link, device, edge, up, down) for link in LINKS},
        images=len(calls),
    )


def _over(link: Any, device: float, edge: float, up: float, down: float) -> float:
    """Time over a link; what stays on the device needs none."""
    if not up:
        return device
    return link.seconds(device=device, edge=edge, bytes_up=up, bytes_down=down)


def local_call(task: Task) -> Callable[[int], Call]:
    """The whole network on the device.

    Args:
        task: Network and images.

    Returns:
        A function from an image's index to its call.
    """

    def call(index: int) -> Call:
        begin = time.perf_counter()
        with torch.inference_mode():
            scores = task.net(task.test[index : index + 1])
        seconds = time.perf_counter() - begin
        return Call(scores[0].numpy(), seconds, 0.0, seconds)

    return call


def picture_call(
    task: Task, client: Client, route: int, form: Form, quality: int | None = None
) -> Callable[[int], Call]:
    """A picture to the whole network on the edge.

    Args:
        task: The images.
        client: The connection.
        route: Which tail of the connection answers this form.
        form: How the picture is written.
        quality: JPEG's quality.

    Returns:
        A function from an image's index to its call.
    """

    def call(index: int) -> Call:
        begin = time.perf_counter()
        data = encode_pixels(task.pixels[index], form, quality)
        encoded = time.perf_counter()
        reply = client.request(data, route=route, timeout=CALL_SECONDS)
        answered = time.perf_counter()
        scores = unpack(reply)[0][0]
        total = time.perf_counter() - begin
        up, down = len(data) + OVERHEAD_BYTES, len(reply) + OVERHEAD_BYTES
        return Call(scores, encoded - begin, answered - encoded, total, up, down)

    return call


def compoff_call(task: Task, remote: Remote, split: str) -> Callable[[int], Call]:
    """A head on the device, its tail on the edge.

    Args:
        task: The images.
        remote: The connected heads.
        split: The split point.

    Returns:
        A function from an image's index to its call.
    """

    def call(index: int) -> Call:
        scores = remote(task.test[index : index + 1], split=split)
        last = remote.last
        if last is None:
            raise RuntimeError("the remote answered and holds no report; it was changed from another thread")
        up, down = last.payload_bytes + OVERHEAD_BYTES, last.reply_bytes + OVERHEAD_BYTES
        return Call(scores[0].numpy(), last.head_seconds, last.remote_seconds, last.total_seconds, up, down)

    return call
