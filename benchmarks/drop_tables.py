"""The tables of bytes within a drop: fewest bytes, what was aimed at, and what the fits cost beside the training."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.markdown import exists, matching, result, sources, system, table, whole

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DROP_TABLES", "chosen_elsewhere", "fewest_bytes", "one_fit"]

_CIFAR = "cifar10-resnet56"
_SPLITS = ("input", "layer2", "layer3")
_LEARNED = ("compoff", "deepcod", "compoff, adapted tail")
# ResNet-50: the paper's Table 1, top-5, and what the project aimed at; then the CIFAR-10 network, top-1.
_AIMS: list[tuple[str, str, str, int | None, int]] = [
    ("resnet50", "input", "top-5", 5_700, 4_000),
    ("resnet50", "layer1", "top-5", 980, 980),
    ("resnet50", "layer2", "top-5", 245, 600),
    ("resnet50", "layer3", "top-5", 184, 400),
    ("resnet50", "layer4", "top-5", 123, 200),
    (_CIFAR, "layer2", "top-1", None, 1_024),
    (_CIFAR, "layer3", "top-1", None, 512),
]
# By commit: tiles that results do not tell of themselves, from before the codec took those that it takes now.
_TILES = {"7185ada": "1 × 1 tile", "3c53dca": "2 × 2 tile", "bb3b2e7": "7 × 7 tile"}
_CALLED = {
    "cpu.192": "192 directions",
    "cpu.enlarged": "enlarged photos",
    "cpu.mixed": "channels mixed alike",  # before tiles were described on waves, commit 39925ac
    "cpu.stride4": "4 × 4 tiles",
}
_BY_STEPS = {
    "cpu.deepcod": " of the paper's codec",
    "cpu.long": "",
    "cpu.long.earlier": ", without units",
    "cpu.longest": "",
    "cpu.wide": ", 2,048 channels",
}
_BEST = {  # of the fits at a split point, the one of most steps or, where they were too few, of most channels
    "input": "cpu.long",
    "layer1": "cpu.long",
    "layer2": "cpu.long",
    "layer3": "cpu.long",
    "layer4": "cpu.wide",
}
_TASKS = {
    "boxes, input": "rate_accuracy.yolo-fastest-1.1-xl.input",
    "boxes, layers.25": "rate_accuracy.yolo-fastest-1.1-xl.layers.25.stride4",
    "boxes, layers.61": "rate_accuracy.yolo-fastest-1.1-xl.layers.61.stride4",
    "words, input": "rate_accuracy.bcresnet2.input",
    "words, t3": "rate_accuracy.bcresnet2.t3",
    "sentences, input": "rate_accuracy.deepspeech.input",
    "sentences, recurrent1": "rate_accuracy.deepspeech.recurrent1",
}
_DROPS = {"top-1": ("drop", "drop_stderr"), "top-5": ("drop_top5", "drop_top5_stderr")}


def one_fit(split: str, model: str = _CIFAR) -> str:
    """The result of one fit for every rate at a split point."""
    return f"rate_accuracy.{model}.{split}.{'transform' if model == _CIFAR else 'cpu'}"


def fits_at(model: str, split: str) -> dict[str, str]:
    """The results of one fit for every rate at a split point, by what to call them."""
    if model == _CIFAR:
        return {split: one_fit(split)} if exists(one_fit(split)) else {}
    found: dict[str, str] = {}
    for name in matching(f"rate_accuracy.{model}.{split}.*"):
        suffix = name.rpartition(f"{split}.")[2]
        content = result(name)
        called = _TILES.get(content["commit"][:7], _CALLED.get(suffix, suffix))
        if suffix in _BY_STEPS:
            called = f"{_option(content, '--steps', 0):,} steps{_BY_STEPS[suffix]}"
        found[split if called == "cpu" else f"{split}, {called}"] = name
    return found


def cheapest(rows: list[dict[str, Any]], limit: float, key: str = "drop") -> dict[str, Any] | None:
    """The row with the fewest bytes within a drop; None where there is none."""
    return min((row for row in rows if row[key] <= limit), key=lambda row: row["bytes"], default=None)


def fewest_bytes(rows: list[dict[str, Any]], systems: tuple[str, ...], limit: float, key: str = "drop") -> str:
    """Bytes of the cheapest row within a drop, of the systems named or, without a name, of those not learned.

    Of several fits, one a seed, it is the median, and the range behind it; a dash where one of them has no such row.
    """
    of_systems = [row for row in rows if (row["system"] in systems if systems else row["system"] not in _LEARNED)]
    found = [cheapest(fit, limit, key) for fit in by_seed(of_systems)]
    kept = [row for row in found if row is not None]
    if not found or len(kept) < len(found):
        return "–"
    sizes = [row["bytes"] for row in kept]
    if len(sizes) > 1:
        return f"{whole(statistics.median(sizes))} ({whole(min(sizes))}–{whole(max(sizes))})"
    return whole(sizes[0]) + ("" if systems else f" ({system(kept[0])})")


def by_seed(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each fit."""
    return [
        [row for row in rows if row.get("seed", 0) == seed] for seed in sorted({row.get("seed", 0) for row in rows})
    ]


def at_drop_table() -> str:
    """Fewest bytes within 1, 2 and 5 points of drop, at each split point, beside the best that is not learned."""
    cells: list[list[str]] = []
    for split in _SPLITS:
        rows, once = result(f"rate_accuracy.{_CIFAR}.{split}")["rows"], result(one_fit(split))["rows"]
        cells += [
            [
                split,
                f"≤ {limit}",
                fewest_bytes(once, ("compoff",), limit),
                fewest_bytes([*rows, *once], ("deepcod",), limit),  # of either schedule
                fewest_bytes(rows, (), limit),
            ]
            for limit in (1, 2, 5)
        ]
    head = ["split point", "drop, points", "transform, bytes", "deepcod, bytes", "best without a learned codec, bytes"]
    made = [name for split in _SPLITS for name in (one_fit(split), f"rate_accuracy.{_CIFAR}.{split}")]
    return f"{table(head, cells)}\n\nCIFAR-10, ResNet-56.\n\n{sources(made)}"


def imagenet_table() -> str:
    """ResNet-50's fewest bytes within 1 and 2 points of top-5, at each split point: the best fit there."""
    cells: list[list[str]] = []
    made: list[str] = []
    for split, suffix in _BEST.items():
        name = f"rate_accuracy.resnet50.{split}.{suffix}"
        content, beside = result(name), f"rate_accuracy.resnet50.{split}.cpu.deepcod"
        theirs = result(beside)["rows"] if exists(beside) else []
        rows = [row for row in content["rows"] if row["system"] == "compoff"]
        for limit in (1, 2):
            at = cheapest(rows, limit, "drop_top5")
            ours = (whole(at["bytes"]), f"{at['drop']:.1f}", f"{at['encoder_macs'] / 1e6:.0f}") if at else ("–",) * 3
            cells.append(
                [
                    split,
                    f"≤ {limit}",
                    *ours,
                    fewest_bytes(theirs, ("deepcod",), limit, "drop_top5") if theirs else "not fitted",
                    fewest_bytes(content["rows"], (), limit, "drop_top5"),
                ]
            )
        made += [name, *([beside] if theirs else [])]
    head = ["split point", "top-5 drop, points", "transform, bytes", "top-1 drop there", "encoder, MMAC"]
    return f"{table([*head, 'deepcod, bytes', 'without a learned codec, bytes'], cells)}\n\n{sources(made)}"


def tasks_table() -> str:
    """Fewest bytes of networks that are no classifiers of images, beside the best that is not learned."""
    cells = [
        [
            called,
            f"≤ {limit}",
            fewest_bytes(result(name)["rows"], ("compoff",), limit),
            fewest_bytes(result(name)["rows"], (), limit),
        ]
        for called, name in _TASKS.items()
        for limit in (1, 2)
    ]
    head = ["task, split point", "drop, points", "transform, bytes", "best without a learned codec, bytes"]
    return f"{table(head, cells)}\n\n{sources(list(_TASKS.values()))}"


def aims_table() -> str:
    """What was aimed at, and where it landed."""
    cells: list[list[str]] = []
    for model, split, measure, paper, aim in _AIMS:
        aimed = [measure, whole(paper), f"≤ {whole(aim)}"]
        found = {
            called: name
            for called, name in fits_at(model, split).items()
            if any(row["system"] == "compoff" for row in result(name)["rows"])
        }
        cells += [[model, called, *aimed, *_landed(result(name), measure)] for called, name in found.items()]
        if not found:
            cells.append([model, split, *aimed, "not measured", "–", "–", "–", "–"])
    head = ["network", "split point", "measure", "the paper, bytes", "aim, bytes", "here, bytes"]
    head += ["drop there", "the other drop", "without a learned codec, bytes", "steps × batch"]
    return table(head, cells)


def _landed(content: dict[str, Any], measure: str) -> list[str]:
    """The cells of one result: fewest bytes within a point, or the row that loses least."""
    rows = [row for row in content["rows"] if row["system"] == "compoff"]
    (key, error), other = _DROPS[measure], _DROPS["top-1" if measure == "top-5" else "top-5"][0]
    fits = [cheapest(fit, 1, key) or min(fit, key=lambda row: row[key]) for fit in by_seed(rows)]
    at = sorted(fits, key=lambda row: row["bytes"])[len(fits) // 2]  # of several fits the one whose bytes stand there
    within = fewest_bytes(rows, ("compoff",), 1, key)
    return [
        within if at[key] <= 1 else f"none; {whole(at['bytes'])} lose {at[key]:.1f}",
        f"{at[key]:.1f}" + (f" ± {at[error]:.1f}" if error in at else ""),
        f"{at[other]:.1f}",
        fewest_bytes(content["rows"], (), 1, key),
        _steps(content),
    ]


def _steps(content: dict[str, Any]) -> str:
    return f"{_option(content, '--steps', 0)} × {_option(content, '--batch', 64)}"


def _option(content: dict[str, Any], name: str, default: int) -> int:
    """A number that a result's command was given."""
    words = content["command"].split()
    return int(words[words.index(name) + 1]) if name in words else default


def chosen_elsewhere(rows: list[dict[str, Any]], limit: float, key: str = "drop") -> list[tuple[float, float]]:
    """Bytes and drop on one half of the images of the quality that the other half chose; both ways round, each fit."""
    found: list[tuple[float, float]] = []
    for fit in by_seed(rows):
        for here in (0, 1):
            within = [row for row in fit if row[f"{key}_halves"][1 - here] <= limit]
            row = min(within, key=lambda row: row["bytes"]) if within else max(fit, key=lambda row: row["bytes"])
            found.append((row["bytes"], row[f"{key}_halves"][here]))
    return found


def elsewhere_table() -> str:
    """What becomes of the drop where the quality was chosen on other images."""
    cells: list[list[str]] = []
    for model, called, name in _results():
        rows = [row for row in result(name)["rows"] if row["system"] == "compoff"]
        measure = "top-1" if model == _CIFAR else "top-5"
        key = _DROPS[measure][0]
        for limit in (1, 2) if rows and "drop_halves" in rows[0] and cheapest(rows, 2, key) else ():
            sizes, drops = zip(*chosen_elsewhere(rows, limit, key), strict=True)
            cells.append(
                [
                    model,
                    called,
                    f"{measure} ≤ {limit}",
                    str(len(by_seed(rows))),
                    fewest_bytes(rows, ("compoff",), limit, key),
                    f"{whole(statistics.median(sizes))} ({whole(min(sizes))}–{whole(max(sizes))})",
                    f"{statistics.mean(drops):.1f} ({min(drops):.1f} to {max(drops):.1f})",
                ]
            )
    head = ["network", "split point", "drop asked for", "fits", "bytes, chosen on the same images"]
    return table([*head, "bytes, chosen on the other half", "drop on this half"], cells)


def fit_share_table() -> str:
    """What fits cost beside the training of their networks."""
    cells: list[list[str]] = []
    for model, called, name in _results():
        content = result(name)
        fits = {(row["system"], row.get("seed", 0)): row for row in content["rows"] if "fit_share" in row}
        for one in dict.fromkeys(of for of, _ in fits):
            rows = [row for (of, _), row in fits.items() if of == one]
            cells.append(
                [
                    model,
                    called,
                    "transform" if one == "compoff" else one,
                    _steps(content),
                    f"{rows[0]['fit_macs'] / 1e12:.1f}",
                    f"{rows[0]['training_macs'] / 1e12:,.0f}",
                    f"{100 * rows[0]['fit_share']:.2g} %",
                    f"{statistics.median(row['fit_seconds'] for row in rows) / 60:.0f}",
                ]
            )
    head = ["network", "split point", "codec", "steps × batch", "fit, TMAC", "training, TMAC", "share", "minutes"]
    return table(head, cells)


def _results() -> list[tuple[str, str, str]]:
    """Network, split point and name of every result of one fit for every rate."""
    places = [(model, split) for model, splits in _MEASURED.items() for split in splits]
    return [(model, called, name) for model, split in places for called, name in fits_at(model, split).items()]


_MEASURED = {
    _CIFAR: _SPLITS,
    "resnet18": ("input", "layer3"),
    "resnet50": ("input", "layer1", "layer2", "layer3", "layer4"),
}

DROP_TABLES: dict[str, Callable[[], str]] = {
    "aims": aims_table,
    "at-drop": at_drop_table,
    "chosen-elsewhere": elsewhere_table,
    "fit-share": fit_share_table,
    "imagenet": imagenet_table,
    "tasks": tasks_table,
}
