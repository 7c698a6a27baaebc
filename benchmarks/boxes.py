"""What a detector's boxes are worth: average precision against labelled boxes, and what is found again without labels.

The precision of a class is taken at 101 recalls, as COCO does it, at one overlap; boxes of crowds count as any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Boxes", "Matches", "detected", "found_again", "matched", "mean_precision"]

_OVERLAP = 0.5  # intersection over union from which two boxes are the same
_SUPPRESSED = 0.45  # from which the weaker of two boxes of a class is dropped; darknet's
_WEAKEST = 0.005  # score below which a box is none; darknet's where precision is measured
_MOST = 300  # boxes of one image
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Args:
        classes: Their classes, ``(boxes,)``.
        scores: Their scores, ``(boxes,)``; 1 for labelled ones.
        corners: Left, top, right and bottom in parts of the image, ``(boxes, 4)``.
    """

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    corners: NDArray[np.float64]

    @classmethod
    def of(cls, classes: NDArray[np.int64], scores: NDArray[np.float64], centered: NDArray[np.float64]) -> Boxes:
        """Boxes that come as center x and y, width and height."""
        half = centered[:, 2:] / 2
        return cls(classes, scores, np.concatenate([centered[:, :2] - half, centered[:, :2] + half], 1))

    def part(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Boxes:
        """Some of them."""
        return Boxes(self.classes[which], self.scores[which], self.corners[which])


def detected(raw: Tensor) -> Boxes:
    """What a detector of the YOLO family found in one image, without what says the same.

    Args:
        raw: Center x and y, width, height, objectness and class probabilities of each place, ``(places, 5 + classes)``.

    Returns:
        The boxes, the best first; a place may stand for several classes.
    """
    values = raw.double().numpy()
    scores = values[:, 4:5] * values[:, 5:]
    places, classes = np.nonzero(scores >= _WEAKEST)
    boxes = Boxes.of(classes, scores[places, classes], values[places, :4])
    boxes = boxes.part(np.argsort(-boxes.scores, kind="stable"))
    kept = [one for number in np.unique(boxes.classes) for one in _suppressed(boxes, number)]
    return boxes.part(np.sort(np.array(kept, np.int64))[:_MOST])


def _suppressed(boxes: Boxes, number: int) -> list[int]:
    """Places of one class's boxes that stay; they come the best first."""
    left, kept = np.flatnonzero(boxes.classes == number), list[int]()
    while len(left):
        kept.append(int(left[0]))
        others = left[1:]
        left = others[_overlaps(boxes.corners[left[:1]], boxes.corners[others])[0] <= _SUPPRESSED]
    return kept


def _overlaps(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each box with each other, ``(ours, theirs)``."""
    low, high = np.maximum(ours[:, None, :2], theirs[:, :2]), np.minimum(ours[:, None, 2:], theirs[:, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (ours, theirs)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12)


@dataclass(frozen=True)
class Matches:
    """Which boxes of many images are right, for the precision of any selection of these images.

    Args:
        images: Image of each box found, ``(boxes,)``.
        classes: Its class.
        scores: Its score.
        right: Whether it is a labelled box that no better one has found.
        labelled: Labelled boxes of each image and class, ``(images, classes)``.
    """

    images: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    labelled: NDArray[np.int64]


def matched(found: list[Boxes], labelled: list[Boxes], num_classes: int) -> Matches:
    """Match the boxes of each image, the best first, with the labelled ones of the same class that overlap most.

    Args:
        found: What was found in each image, the best first.
        labelled: The labelled boxes of the same images.
        num_classes: Number of classes.

    Returns:
        The matches.
    """
    right = [_right(ours, theirs) for ours, theirs in zip(found, labelled, strict=True)]
    counts = np.stack([np.bincount(boxes.classes, minlength=num_classes) for boxes in labelled])
    return Matches(
        np.repeat(np.arange(len(found)), [len(boxes.scores) for boxes in found]),
        np.concatenate([boxes.classes for boxes in found]),
        np.concatenate([boxes.scores for boxes in found]),
        np.concatenate(right),
        counts,
    )


def _right(found: Boxes, labelled: Boxes) -> NDArray[np.bool_]:
    overlaps = _overlaps(found.corners, labelled.corners)
    overlaps[found.classes[:, None] != labelled.classes] = 0
    right = np.zeros(len(found.scores), np.bool_)
    for place in range(len(right) if len(labelled.scores) else 0):
        best = int(overlaps[place].argmax())
        if overlaps[place, best] >= _OVERLAP:
            right[place] = True
            overlaps[:, best] = 0  # found; whoever finds it again is wrong
    return right


def mean_precision(matches: Matches, times: NDArray[np.int64] | None = None) -> float:
    """Average precision, the mean over the classes that are labelled.

    Args:
        matches: The matches.
        times: How often each image counts, ``(images,)``; None for once.

    Returns:
        A number from 0 to 1.
    """
    times = np.ones(len(matches.labelled), np.int64) if times is None else times
    labelled, order = times @ matches.labelled, np.argsort(-matches.scores, kind="stable")
    classes, right, counts = matches.classes[order], matches.right[order], times[matches.images[order]]
    of_class = [(classes == one, one) for one in np.flatnonzero(labelled)]
    return float(np.mean([_precision(right[these], counts[these], labelled[one]) for these, one in of_class]))


def _precision(right: NDArray[np.bool_], counts: NDArray[np.int64], labelled: int) -> float:
    """Precision of one class, the mean over recalls of the best that is reached at that recall or beyond."""
    hits, all_found = np.cumsum(right * counts), np.cumsum(counts)
    precision = np.maximum.accumulate((hits / np.maximum(all_found, 1))[::-1])[::-1]
    places = np.searchsorted(hits / labelled, _RECALLS, side="left")
    return float(np.where(places < len(precision), np.append(precision, 0)[places], 0).mean())


def found_again(teacher: list[Boxes], student: list[Boxes], least: float = 0.3) -> float:
    """How far two detectors find the same boxes, without labels: the F1 score of the one against the other.

    Args:
        teacher: What the one found in each image.
        student: What the other found.
        least: Score from which a box counts.

    Returns:
        A number from 0 to 1.
    """
    sides = [[boxes.part(boxes.scores >= least) for boxes in side] for side in (teacher, student)]
    both = sum(int(_right(theirs, ours).sum()) for ours, theirs in zip(*sides, strict=True))
    return 2 * both / max(sum(len(boxes.scores) for side in sides for boxes in side), 1)
