"""A tail that is no program: the user's own model, run in PyTorch from the cut on.

What runs before the cut gets inputs of zeros; at the places where tensors cross, hooks put in what arrived. The model
comes from a factory that whoever loads the tail names himself, since its code runs here.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from compoff.autocast import no_autocast
from compoff.errors import ArtifactError, BackendError
from compoff.fingerprint import fingerprint
from compoff.forks import OwnLock
from compoff.hooks import Tap, hang
from compoff.programs import DEVICE_ERRORS, TorchProgram
from compoff.structure import unflatten
from compoff.trees import map_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compoff.artifact import Folder
    from compoff.manifest import Manifest

__all__ = ["DECODERS", "Factory", "ModuleBackend", "make_model"]

DECODERS = "decoders.pt2"
"""Name of the program from symbols to features in a tail's folder."""

_PLACES = "places.json"

Factory: TypeAlias = str | Callable[[], nn.Module]
"""What makes the model: ``"package.module:function"``, or the function itself."""


def make_model(factory: Factory, weights: str) -> nn.Module:
    """Make the user's model and check that it is the one that was exported.

    Args:
        factory: What makes it, with its weights.
        weights: Fingerprint of the weights that it must have.

    Returns:
        The model in eval mode, without gradients.

    Raises:
        ArtifactError: The factory cannot be found, fails, or makes a model with other weights.
    """
    try:
        model = _function(factory)() if isinstance(factory, str) else factory()
    except Exception as error:  # whatever the user's own code raises
        raise ArtifactError(
            f"factory {_named(factory)} makes no model ({type(error).__name__}: {error}); expected "
            "'package.module:function', importable here, which takes no arguments"
        ) from error
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
        raise ArtifactError(
            f"factory {_named(factory)} makes a {type(model).__name__}; expected a torch.nn.Module with its weights"
        )
    found = fingerprint(model.state_dict())
    if found != weights:
        raise ArtifactError(
            f"factory {_named(factory)} makes a model whose weights have the fingerprint {found[:8]}…, but the head "
            f"was exported from {weights[:8]}…; let it load the same weights"
        )
    return model.eval().requires_grad_(requires_grad=False)


class ModuleBackend:
    """Runs the user's own model from the cut on.

    Args:
        manifest: What the tail is.
        model: The model; hooks are hung into it.
        decoders: Symbols of each code to the features as the model has them.
        places: Where these and the side tensors are put in, in the order in which they arrive, and for each whether the
            tensor there may be written to.
        device: Where to run the model, such as ``"cuda"``.

    Raises:
        BackendError: There is no such device here.
    """

    def __init__(
        self,
        manifest: Manifest,
        model: nn.Module,
        decoders: TorchProgram,
        places: Sequence[tuple[Tap, bool]],
        device: str = "cpu",
    ) -> None:
        self._manifest = manifest
        try:
            self._model = model.to(device)
        except DEVICE_ERRORS as error:
            raise BackendError(f"the model cannot run on device '{device}' ({error}); choose another") from error
        self._device = device
        self._decoders = decoders
        self._places = tuple(places)
        self._feed = _Feed(len(manifest.codes), [own for _, own in places])
        self._lock = OwnLock()  # one run at a time goes through the hooks
        hang(model, self._feed, [tap for tap, _ in places])

    @classmethod
    def load(cls, folder: Folder, factory: Factory | None, device: str = "cpu") -> ModuleBackend:
        """Read what a folder holds of such a tail, and make the model.

        Args:
            folder: The folder, read and checked.
            factory: What makes the model; whoever loads the folder says so, since its code runs here.
            device: Where to run it.

        Returns:
            The backend.

        Raises:
            ArtifactError: The folder is damaged, or the factory makes another model.
            BackendError: No factory was given, or there is no such device here.
        """
        manifest = folder.manifest
        if factory is None:
            raise BackendError(
                f"'{folder.path}' is a tail that runs the model itself, made by '{manifest.factory}'; if you trust "
                f"that code, load it with factory='{manifest.factory}', or with the function itself"
            )
        decoders = TorchProgram.load(folder.file(DECODERS), str(folder.path / DECODERS), device)
        try:
            places = [(Tap(**entry["tap"]), bool(entry["own"])) for entry in json.loads(folder.file(_PLACES))]
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{folder.path / _PLACES}: is damaged ({error}); export again") from error
        return cls(manifest, make_model(factory, manifest.base), decoders, places, device)

    @property
    def files(self) -> dict[str, bytes]:
        """Decoders and places as files of an artifact, by name."""
        places = json.dumps([{"tap": asdict(tap), "own": own} for tap, own in self._places], indent=1)
        return {DECODERS: self._decoders.to_bytes(), _PLACES: places.encode()}

    def run(self, parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Refused: what such a tail returns has no form that is known beforehand."""
        del parts
        raise BackendError("this tail's output has no fixed form; call run_nested")

    def run_nested(self, parts: list[NDArray[Any]]) -> Any:
        """Turn what arrived into the model's own output.

        Args:
            parts: Symbols of each code, then the side tensors, of one batch.

        Returns:
            What the model returns.
        """
        count = len(self._manifest.codes)
        features = self._decoders.run(parts[:count])
        arrived = [torch.from_numpy(np.array(array)).to(self._device) for array in (*features, *parts[count:])]  # pyright: ignore[reportUnknownMemberType]
        args, keywords = self._inputs(len(parts[0]))
        with self._lock, torch.no_grad(), no_autocast(), self._feed.giving(arrived):
            output = self._model(*args, **keywords)
        return output if self._device == "cpu" else map_tensors(output, Tensor.cpu)

    def _inputs(self, batch: int) -> tuple[list[Any], dict[str, Any]]:
        """Inputs of zeros; the values that matter are put in behind them."""
        zeros = [
            torch.zeros(
                spec.sized(batch),
                dtype=getattr(torch, spec.dtype),
                device=self._device,
            )
            for spec in self._manifest.inputs
        ]
        args, keywords = unflatten(self._manifest.call["call"], zeros)
        return args, keywords


class _Feed:
    """Puts what arrived in at the places where it crosses; a catcher of `compoff.hooks`."""

    def __init__(self, codes: int, own: list[bool]) -> None:
        self._own = own
        self.passes = 0
        self.at_work = False
        self._codes = codes
        self._arrived: list[Tensor] = []
        self._waiting: dict[int, Tensor] = {}

    @property
    def active(self) -> bool:
        """Whether a run is under way."""
        return bool(self._arrived)

    def giving(self, arrived: list[Tensor]) -> _Feed:
        """What to put in during the block that follows."""
        self._arrived = arrived
        return self

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Forget it again."""
        self._arrived = []
        self._waiting.clear()

    def begin(self) -> None:
        """A pass begins."""
        self.passes += 1
        self._waiting.clear()

    def catch(self, index: int, tensor: Tensor) -> Tensor:
        """Give back what arrived, at once or at the moment of the cut."""
        self.at_work = True
        try:
            return self._given(index, tensor)
        finally:
            self.at_work = False

    def _given(self, index: int, tensor: Tensor) -> Tensor:
        if index >= self._codes:
            return self._arrived[index]
        if index:
            self._waiting[index] = tensor if self._own[index] else tensor.clone()
            return self._waiting[index]
        for place, waiting in self._waiting.items():
            waiting.copy_(self._arrived[place])
        # In place, where that is possible, for whoever has kept this object.
        return tensor.copy_(self._arrived[0]) if self._own[0] else self._arrived[0]


def _function(name: str) -> Callable[[], Any]:
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError("there is no ':' in it")
    return getattr(importlib.import_module(module), function)


def _named(factory: Factory) -> str:
    return f"'{factory}'" if isinstance(factory, str) else getattr(factory, "__qualname__", repr(factory))
