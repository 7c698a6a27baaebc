"""The tables of what the choices in the codec are worth, and of networks for ImageNet."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.markdown import result, source, sources, system, table, whole

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RATE_TABLES", "Curve"]

_SEEDS = ("as it is", "as it is, seed 1", "as it is, seed 2")


class Curve:
    """Bytes against the output's error, through the points of several fits of the same codec.

    Args:
        fits: Rows of each fit, one a quality.
    """

    def __init__(self, fits: list[list[dict[str, Any]]]) -> None:
        means = [
            [sum(math.log(row[key]) for row in rows) / len(rows) for key in ("output_error", "bytes")]
            for rows in zip(*fits, strict=True)
        ]
        self._points = sorted((error, size) for error, size in means)

    def more_bytes(self, rows: list[dict[str, Any]]) -> float | None:
        """How many more bytes rows take than this curve at the same error, as a share; None where they do not meet."""
        found = [self._apart(row) for row in rows]
        met = [apart for apart in found if apart is not None]
        return math.exp(sum(met) / len(met)) - 1 if met else None

    def _apart(self, row: dict[str, Any]) -> float | None:
        error, size = math.log(row["output_error"]), math.log(row["bytes"])
        for (low, first), (high, second) in zip(self._points, self._points[1:], strict=False):
            if low <= error <= high:
                return size - first - (second - first) * (error - low) / (high - low)
        return None


def ablation_table(name: str) -> str:
    """Each variation beside the codec as it is: at the same error, and at the quality nearest to the bytes aimed at."""
    rows = result(name)["rows"]
    fits = {
        change: [row for row in rows if row["change"] == change] for change in dict.fromkeys(r["change"] for r in rows)
    }
    curve = Curve([fits[seed] for seed in _SEEDS if seed in fits])
    aimed = fits[_SEEDS[0]]
    middle = aimed[len(aimed) // 2]["bytes"]
    cells: list[list[str]] = []
    for change, of_change in fits.items():
        more, row = curve.more_bytes(of_change), min(of_change, key=lambda row: abs(row["bytes"] - middle))
        cells.append(
            [
                change,
                "no overlap" if more is None else f"{100 * more:+.1f} %",
                whole(row["bytes"]),
                f"{row['output_error']:.3f}",
                f"{100 * row['agreement']:.1f} %",
                f"{row['decoder_macs'] / 1e6:.0f}",
            ]
        )
    cells += [_context_cells(fits[_SEEDS[0]])]
    head = ["variation", "bytes at equal error", "bytes", "output error", "agreement", "decoder, MMAC"]
    return f"{table(head, cells)}\n\n{source(name)}"


def _context_cells(rows: list[dict[str, Any]]) -> list[str]:
    """The very same symbols under tables that depend on what came before."""
    middle = rows[len(rows) // 2]
    shares = [row["entropy_bytes_context"] / row["entropy_bytes_plain"] - 1 for row in rows]
    return [
        "coder: tables by the activity before (Shannon's measure)",
        f"{100 * sum(shares) / len(shares):+.1f} %",
        whole(middle["entropy_bytes_context"]),
        f"{middle['output_error']:.3f}",
        f"{100 * middle['agreement']:.1f} %",
        f"{middle['decoder_macs'] / 1e6:.0f}",
    ]


def tail_table(*splits: str) -> str:
    """Strict tails beside tails that adapt, over several seeds."""
    cells: list[list[str]] = []
    made: list[str] = []
    for split in splits:
        name = f"ablations.cifar10-resnet56.{split}"
        rows = [row for row in result(name)["rows"] if row["group"] in ("as it is", "tail")]
        kinds = {group: [row for row in rows if row["group"] == group] for group in ("as it is", "tail")}
        curves = {group: _by_seed(of_group) for group, of_group in kinds.items()}
        made.append(name)
        more = Curve(curves["as it is"]).more_bytes(kinds["tail"])
        assert more is not None
        for quality in range(len(curves["tail"][0])):
            cells.append([split, str(quality)])
            for of_group in curves.values():
                here = [fit[quality] for fit in of_group]
                means = {key: sum(row[key] for row in here) / len(here) for key in ("bytes", "drop", "output_error")}
                cells[-1] += [whole(means["bytes"]), f"{means['drop']:.1f}", f"{means['output_error']:.3f}"]
        told = f"{split}, {rows[0]['steps']} steps, seeds: {len(curves['tail'])}"
        cells.append([told, "equal error", "", "", "", f"{100 * more:+.1f} %", "", ""])
    head = ["split point", "quality", "strict: bytes", "drop", "error", "adapted: bytes", "drop", "error"]
    return f"{table(head, cells)}\n\n{sources(made)}"


def _by_seed(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    names = dict.fromkeys(row["change"] for row in rows)
    return [[row for row in rows if row["change"] == change] for change in names]


def imagenet_table(name: str) -> str:
    """What one run on ImageNet's classes measured, top-5 beside top-1."""
    rows = sorted(result(name)["rows"], key=lambda row: row["bytes"])
    head = ["system", "bytes", "top-1 drop, points", "top-5 drop, points", "agreement", "encoder MMAC"]
    cells = [
        [
            system(row),
            whole(row["bytes"]),
            f"{row['drop']:.1f} ± {row['drop_stderr']:.1f}",
            f"{row['drop_top5']:.1f}" + (f" ± {row['drop_top5_stderr']:.1f}" if "drop_top5_stderr" in row else ""),
            f"{100 * row['agreement']:.1f} %",
            "–" if row["encoder_macs"] is None else f"{row['encoder_macs'] / 1e6:.1f}",
        ]
        for row in rows
    ]
    return f"{table(head, cells)}\n\n{source(name)}"


def task_table(name: str, drop: str, agreement: str) -> str:
    """What one run measured of a task that is not ImageNet's.

    Args:
        name: The result.
        drop: What is lost.
        agreement: What is found again.
    """
    rows = sorted(result(name)["rows"], key=lambda row: row["bytes"])
    cells = [
        [
            system(row),
            whole(row["bytes"]),
            f"{row['drop']:.1f} ± {row['drop_stderr']:.1f}",
            f"{100 * row['agreement']:.1f} %",
            "–" if row["encoder_macs"] is None else f"{row['encoder_macs'] / 1e6:.2f}",
            "–" if row["encode_ms"] is None else f"{row['encode_ms']:.1f}",
        ]
        for row in rows
    ]
    head = ["system", "bytes", drop, agreement, "encoder MMAC", "encoding, ms"]
    return f"{table(head, cells)}\n\n{source(name)}"


def left_out_table(name: str) -> str:
    """What codecs of several sizes leave out before anything is rounded."""
    head = ["tile", "channels", "encoder MMAC", "error of the feature", "of the output", "drop of mAP50, points"]
    cells = [
        [
            f"{row['stride']} × {row['stride']}",
            whole(row["channels"]),
            f"{row['encoder_macs'] / 1e6:.1f}",
            f"{row['feature_error']:.3f}",
            f"{row['output_error']:.3f}",
            f"{row['drop']:.1f} ± {row['drop_stderr']:.1f}",
            f"{100 * row['agreement']:.1f} %",
        ]
        for row in result(name)["rows"]
    ]
    return f"{table([*head, 'boxes found again'], cells)}\n\n{source(name)}"


_boxes = partial(task_table, drop="drop of mAP50, points", agreement="boxes found again")
_words = partial(task_table, drop="drop, points", agreement="same word")
_sentences = partial(task_table, drop="word error rate, points more", agreement="same sentence")


def encoder_table() -> str:
    """The device's work at the input beside an image codec's."""
    rows = result("encoder_time")["rows"]
    keys = ("ms", "first_ms")
    quickest = {key: min(row[key] for row in rows if row["way"].startswith("Pillow")) for key in keys}
    cells = [
        [row["way"], *(f"{number:.2f}" for key in keys for number in (row[key], row[key] / quickest[key]))]
        for row in rows
    ]
    sizes = [whole(row["bytes"]) for row in rows]
    head = ["way", "ms", "÷ the quickest JPEG", "after other work, ms", "÷ the quickest JPEG", "bytes"]
    return (
        f"{table(head, [[*cell, size] for cell, size in zip(cells, sizes, strict=True)])}\n\n{source('encoder_time')}"
    )


def contexts_table(name: str) -> str:
    """What context models and their parts save at each quality, and what coding takes at the middle one."""
    rows = result(name)["rows"]
    qualities = sorted({row["quality"] for row in rows})
    timed = qualities[len(qualities) // 2]
    ways = {
        row["variation"]: {other["quality"]: other for other in rows if other["variation"] == row["variation"]}
        for row in rows
    }
    head = ["coding", *(f"bytes, quality {quality}" for quality in qualities)]
    cells = [
        [
            way,
            *(whole(found[quality]["bytes"]) for quality in qualities),
            *(f"{found[timed][key]:.2f}" for key in ("encode_ms", "decode_ms")),
        ]
        for way, found in ways.items()
    ]
    return f"{table([*head, f'encode, ms, quality {timed}', 'decode, ms'], cells)}\n\n{source(name)}"


def sizes_table(name: str) -> str:
    """One fit at sizes of input that it was not fitted for, beside its own."""
    head = ["side, pixels", "the network's top-1", "quality", "bytes", "with tables counted there"]
    head += ["top-1 drop, points", "top-5 drop, points", "agreement"]
    cells = [
        [
            str(row["size"]),
            f"{100 * row['top1']:.1f} %",
            str(row["quality"]),
            whole(row["bytes"]),
            whole(row["counted_bytes"]),
            f"{row['drop']:.1f} ± {row['drop_stderr']:.1f}",
            f"{row['drop_top5']:.1f} ± {row['drop_top5_stderr']:.1f}",
            f"{100 * row['agreement']:.1f} %",
        ]
        for row in result(name)["rows"]
    ]
    return f"{table(head, cells)}\n\n{source(name)}"


RATE_TABLES: dict[str, Callable[[], str]] = {
    "ablations-layer3": partial(ablation_table, "ablations.cifar10-resnet56.layer3"),
    "ablations-resnet18-layer4": partial(ablation_table, "ablations.resnet18.layer4"),
    "ablations-channels": partial(ablation_table, "ablations.cifar10-resnet56.layer3.channels"),
    "ablations-rates": partial(ablation_table, "ablations.cifar10-resnet56.layer3.rates"),
    "adapted-tails": partial(tail_table, "layer2", "layer3"),
    "contexts-input": partial(contexts_table, "contexts.resnet18.input"),
    "contexts-layer1": partial(contexts_table, "contexts.resnet18.layer1"),
    "encoder-time": encoder_table,
    "detector-input": partial(_boxes, "rate_accuracy.yolo-fastest-1.1-xl.input"),
    "detector-layers.25": partial(_boxes, "rate_accuracy.yolo-fastest-1.1-xl.layers.25.stride4"),
    "detector-layers.61": partial(_boxes, "rate_accuracy.yolo-fastest-1.1-xl.layers.61.stride4"),
    "detector-layers.61-default": partial(_boxes, "rate_accuracy.yolo-fastest-1.1-xl.layers.61"),
    "detector-left-out": partial(left_out_table, "left_out.yolo-fastest-1.1-xl.layers.61"),
    "keywords-input": partial(_words, "rate_accuracy.bcresnet2.input"),
    "keywords-t3": partial(_words, "rate_accuracy.bcresnet2.t3"),
    "sentences-input": partial(_sentences, "rate_accuracy.deepspeech.input"),
    "sentences-recurrent1": partial(_sentences, "rate_accuracy.deepspeech.recurrent1"),
    "sizes-layer2": partial(sizes_table, "sizes.resnet50.layer2"),
    **{
        f"{model}-{split}": partial(imagenet_table, f"rate_accuracy.{model}.{split}.cpu")
        for model in ("resnet18", "resnet50")
        for split in ("input", "layer1", "layer2", "layer3", "layer4")
    },
    "resnet18-layer1-wide": partial(imagenet_table, "rate_accuracy.resnet18.layer1.cpu.wide"),
    "resnet50-input-long": partial(imagenet_table, "rate_accuracy.resnet50.input.cpu.long"),
    "resnet50-layer1-long": partial(imagenet_table, "rate_accuracy.resnet50.layer1.cpu.long"),
    "resnet50-layer2-long": partial(imagenet_table, "rate_accuracy.resnet50.layer2.cpu.long"),
    "resnet50-layer2-mixed": partial(imagenet_table, "rate_accuracy.resnet50.layer2.cpu.mixed"),
    "resnet50-layer2-stride4": partial(imagenet_table, "rate_accuracy.resnet50.layer2.cpu.stride4"),
    "resnet50-layer2-192": partial(imagenet_table, "rate_accuracy.resnet50.layer2.cpu.192"),
    "resnet50-layer2-deepcod": partial(imagenet_table, "rate_accuracy.resnet50.layer2.cpu.deepcod"),
    "resnet18-layer3-deepcod": partial(imagenet_table, "rate_accuracy.resnet18.layer3.cpu.deepcod"),
    "resnet18-layer4-stride4": partial(imagenet_table, "rate_accuracy.resnet18.layer4.cpu.stride4"),
    "resnet18-layer4-stride4-wide": partial(imagenet_table, "rate_accuracy.resnet18.layer4.cpu.stride4.wide"),
    "resnet50-layer3-long": partial(imagenet_table, "rate_accuracy.resnet50.layer3.cpu.long"),
    "resnet50-layer4-mixed": partial(imagenet_table, "rate_accuracy.resnet50.layer4.cpu.mixed"),
    "resnet50-layer4-long": partial(imagenet_table, "rate_accuracy.resnet50.layer4.cpu.long"),
    "resnet50-layer4-longest": partial(imagenet_table, "rate_accuracy.resnet50.layer4.cpu.longest"),
    "resnet50-layer4-channels": partial(imagenet_table, "rate_accuracy.resnet50.layer4.cpu.wide"),
    "resnet50-layer4-narrow": partial(imagenet_table, "rate_accuracy.resnet50.layer4.narrow"),
    "resnet50-layer4-wide": partial(imagenet_table, "rate_accuracy.resnet50.layer4.wide"),
    "resnet50-layer4-stride2": partial(imagenet_table, "rate_accuracy.resnet50.layer4.cpu.stride2"),
}
