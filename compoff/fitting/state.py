"""How far a fit has come, in one safetensors file: a killed fit goes on where it was, step for step.

Holds the bottlenecks, Adam's moments, the random state and the curves; read back only into the fit that wrote it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from compoff.codec.prior import CONTEXTS_KEY
from compoff.errors import FitError
from compoff.fingerprint import fingerprint
from compoff.printable import first_line, told

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["FitState", "RandomState", "load_state", "save_state"]

_BOTTLENECKS, _ADAM = "bottlenecks.", "adam."
_ROUND, _NOW = ("rng", "rng_device"), ("rng_now", "rng_now_device")
_LOADER = "rng_loader."  # and a number: state of a generator that the loader has of its own
_FORMAT = "compoff-fit-1"  # older files say nothing
_LATER = ("quality", "served")  # of a bottleneck: what files of older versions lack, and loading fills in
_CONTEXTS = f".prior.{CONTEXTS_KEY}"  # fitted after the last step, so that either side may have some


@dataclass
class FitState:
    """Progress of a fit.

    Args:
        step: Number of steps done.
        position: Number of batches of the current round of the loader that are used up.
        seconds: Wall-clock time so far, in seconds.
        loss: Loss of every step, by split point.
        reconstruction: First-phase loss of every step, by split point; what convergence is judged by.
        distilled_from: Step at which Eq. 11 was added, by split point.
        lrs: Learning rate at the start of each group of parameters.
        bytes: Recent mean length of a payload, by split point, where one is held.
        held: Lasting part of the rate's weight there, as a logarithm.
        overhead: Bytes of a payload there that are no symbols, where bytes are held.
    """

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    loss: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    reconstruction: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    distilled_from: dict[str, int] = field(default_factory=dict[str, int])
    lrs: list[float] = field(default_factory=list[float])
    bytes: dict[str, float] = field(default_factory=dict[str, float])
    held: dict[str, float] = field(default_factory=dict[str, float])
    overhead: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class RandomState:
    """PyTorch's random state at two moments: of the CPU, and behind it of the device where that is another.

    Args:
        round: When the current round of the loader began: it then shuffles as it did.
        now: After the last step; empty in a file of an older version.
        loader: Of the generators that the loader has of its own, when the round began.
    """

    round: tuple[Tensor, ...]
    now: tuple[Tensor, ...] = ()
    loader: tuple[Tensor, ...] = ()


def save_state(
    path: Path,
    state: FitState,
    settings: dict[str, Any],
    bottlenecks: nn.Module,
    optimizer: torch.optim.Adam,
    rng: RandomState,
) -> None:
    """Write the state; the old file stays until the new one is whole.

    Args:
        path: The file.
        state: Progress.
        settings: What makes this fit this fit; compared when it is read back.
        bottlenecks: The bottlenecks.
        optimizer: Their optimizer.
        rng: Random state.

    Raises:
        FitError: The file cannot be written.

    Examples:
        >>> import tempfile, pathlib, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> adam, rng = torch.optim.Adam(net.parameters()), RandomState((torch.get_rng_state(),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "state.safetensors")
        ...     save_state(path, FitState(step=7), {"seed": 0}, net, adam, rng)
        ...     load_state(path, {"seed": 0}, net, adam)[0].step
        7
    """
    tensors = {_BOTTLENECKS + name: tensor.contiguous() for name, tensor in bottlenecks.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"{_ADAM}{index}.{name}"] = torch.as_tensor(value).contiguous()
    tensors |= dict(zip(_ROUND, rng.round, strict=False)) | dict(zip(_NOW, rng.now, strict=False))
    tensors |= {f"{_LOADER}{place}": state for place, state in enumerate(rng.loader)}
    metadata = {"format": _FORMAT, "settings": json.dumps(settings, sort_keys=True), "state": json.dumps(vars(state))}
    metadata["checksum"] = _checksum(metadata, tensors)
    draft = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, draft, metadata)
        os.replace(draft, path)  # noqa: PTH105 - atomic, and says so
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise FitError(
            f"the state of the fit cannot be kept in '{path}' at step {state.step} ({first_line(error)}); make room "
            "or give another file: the bottlenecks hold what has been fitted, and an older state is still there"
        ) from error


def load_state(
    path: Path, settings: dict[str, Any], bottlenecks: nn.Module, optimizer: torch.optim.Adam
) -> tuple[FitState, RandomState]:
    """Read the state back into bottlenecks and optimizer.

    Args:
        path: The file.
        settings: What this fit is; must be what the file was written by.
        bottlenecks: The bottlenecks.
        optimizer: Their optimizer.

    Returns:
        Progress, and the random state.

    Raises:
        FitError: The file is damaged or belongs to another fit; nothing has been changed then.

    Examples:
        >>> import pathlib, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> load_state(pathlib.Path("no such file"), {}, net, torch.optim.Adam(net.parameters()))
        Traceback (most recent call last):
        compoff.errors.FitError: 'no such file' is not the state of a fit ...
    """
    metadata, tensors = _read(path)
    if not metadata.keys() >= {"settings", "state"}:
        saved = metadata.get("format", "").startswith("compoff-bottlenecks")
        what = "is what Wrapped.save wrote, which compoff.load reads" if saved else "holds something else"
        raise FitError(f"'{path}' is not the state of a fit: it {what}; give another path to keep the state in")
    theirs = metadata.get("format")
    if theirs not in (None, _FORMAT):
        raise _of_another_version(path, f"its format is {theirs!r}, expected {_FORMAT!r}")
    try:
        found, state = json.loads(metadata["settings"]), FitState(**json.loads(metadata["state"]))
        # A file of an older version has no checksum and fewer settings; what it has must still fit.
        whole = metadata.get("checksum") in (None, _checksum(metadata, tensors))
        if _ROUND[0] not in tensors:
            raise KeyError(_ROUND[0])
        began, now = (tuple(tensors[name] for name in names if name in tensors) for names in (_ROUND, _NOW))
        rng = RandomState(began, now, tuple(_under(_LOADER, tensors).values()))
    except (KeyError, ValueError, TypeError) as error:
        raise FitError(f"'{path}' is a damaged state of a fit ({told(error)}); delete it to start afresh") from error
    if not whole:
        raise FitError(f"'{path}' is damaged (its checksum is wrong); delete it to start afresh")
    _compare_settings(path, found, json.loads(json.dumps(settings)))
    weights = _under(_BOTTLENECKS, tensors)
    _compare(path, weights, bottlenecks.state_dict(), known=theirs is not None)
    moments = _moments(path, tensors, optimizer)
    if state.lrs and len(state.lrs) != len(optimizer.param_groups):  # a file of an older version
        raise _of_another_version(
            path, f"it knew {len(state.lrs)} learning rates where this one knows {len(optimizer.param_groups)}"
        )
    bottlenecks.load_state_dict(weights)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state, rng


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Everything in the file."""
    try:
        with cast("Any", safe_open)(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise FitError(
            f"'{path}' is not the state of a fit ({first_line(error)}); give another path to keep the state in, or, "
            "where it was one and is damaged, delete it to start afresh"
        ) from error


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """One name for all that is in the file."""
    text = f"{metadata['settings']}|{metadata['state']}|{fingerprint(tensors)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _of_another_version(path: Path, why: str) -> FitError:
    return FitError(
        f"'{path}' was written by another version of compoff ({why}); go on with that version, or give another file to "
        "start afresh"
    )


def _compare_settings(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse the state of a fit with other arguments; what a recipe says follows from most of them."""
    recipes = found.get("recipe", {}), expected.get("recipe", {})
    if recipes[0].keys() != recipes[1].keys():
        unknown = ", ".join(sorted(recipes[0].keys() ^ recipes[1].keys()))
        raise _of_another_version(path, f"one of the two has no {unknown} in its recipes")
    flat = [
        {**{f"recipe.{name}": value for name, value in recipe.items()}, **settings}
        for recipe, settings in zip(recipes, (found, expected), strict=True)
    ]
    for key in sorted(flat[0], key=lambda name: (name != "recipe.codec", name)):
        theirs, ours = flat[0][key], flat[1].get(key)
        if theirs != ours and key != "recipe":
            raise FitError(
                f"'{path}' was written by a fit with {key}={theirs}, and this one has {key}={ours}; give the same "
                "arguments to go on with it, or another file to start afresh"
            )


def _compare(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, known: bool) -> None:
    """Refuse tensors that do not fit the ones they are to replace."""
    found, expected = ({name: one for name, one in side.items() if _CONTEXTS not in name} for side in (found, expected))
    absent = [name for name in expected if name not in found and name.partition(".")[2] not in _LATER]
    if not known and (odd := [*absent, *(name for name in found if name not in expected)]):
        raise _of_another_version(path, f"or for other bottlenecks: one of the two has no {odd[0]}")
    for name in sorted({*found, *expected}):
        if name not in found and name.partition(".")[2] in _LATER:
            continue
        shapes = [tuple(side[name].shape) if name in side else None for side in (found, expected)]
        if shapes[0] != shapes[1]:
            theirs, ours = ("none" if shape is None else f"shape {shape}" for shape in shapes)
            raise FitError(
                f"'{path}' was written for other bottlenecks: it has {theirs} for {name}, and this fit has {ours}; "
                "wrap as before to go on with it, or give another file to start afresh"
            )


def _moments(path: Path, tensors: Mapping[str, Tensor], optimizer: torch.optim.Adam) -> dict[int, dict[str, Tensor]]:
    """Adam's state by parameter."""
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(_ADAM, tensors).items():
        index, _, key = name.partition(".")
        fits = index.isdecimal() and int(index) < len(parameters)
        if not fits or (key != "step" and tensor.shape != parameters[int(index)].shape):
            raise FitError(
                f"'{path}' has a moment for {name} that fits no parameter of this fit; delete it to start afresh"
            )
        moments.setdefault(int(index), {})[key] = tensor
    return moments


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
