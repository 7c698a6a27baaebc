"""Cards that are none: tensors of the CPU that say they are on one, and operators that refuse to mix the two.

What is computed is what the CPU computes. So a test sees where a script forgets to move something, without a GPU.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_CPU = torch.device("cpu")
_TRULY = Tensor.device
_MIXING = {"copy_", "index", "index_put", "index_put_", "_index_put_impl_"}  # move, or take places from the CPU


class Cards:
    """Which memory is on which card; what is not listed is on the CPU."""

    def __init__(self, current: int) -> None:
        self.current = current
        self.asleep = False
        self.reads = 0  # how often numbers on a card were asked for, which is to wait for it
        self.making: torch.device | None = None
        self._cards: dict[int, tuple[StorageWeakRef, torch.device]] = {}  # a reference keeps the number from others

    # torch.export makes tensors of kinds of its own, so what it does on a card is not seen here.
    def unseen(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call within which all is on the CPU."""

        def asleep(*args: Any, **kwargs: Any) -> Any:
            self.asleep = True
            try:
                return call(*args, **kwargs)
            finally:
                self.asleep = False

        return asleep

    def made(self, device: torch.device, call: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """What a call makes, on a device."""
        before, self.making = self.making, device
        try:
            result = call(*args, **kwargs)
        finally:
            self.making = before
        if _TRULY.__get__(result) == _CPU:  # no operator makes what is of numbers
            self.put(result, device)
        return result

    def of(self, tensor: Tensor) -> torch.device:
        truly = _TRULY.__get__(tensor)
        if truly != _CPU or self.asleep:  # a tensor without values, as an export has them
            return truly
        return self._cards.get(tensor.untyped_storage()._cdata, (None, _CPU))[1]

    def named(self, given: Any) -> torch.device | None:
        """A device as a tensor says it, with its number."""
        if given is None:
            return None
        device = torch.device("cuda", given) if isinstance(given, int) else torch.device(given)
        return torch.device("cuda", self.current) if device.type == "cuda" and device.index is None else device

    def put(self, tensor: Tensor, device: torch.device) -> None:
        if device != _CPU and tensor.dtype == torch.float64:
            raise TypeError(f"Cannot make a float64 on {device}, which has none, as MPS")
        storage = tensor.untyped_storage()
        self._cards[storage._cdata] = (StorageWeakRef(storage), device)


class _Moved(torch.autograd.Function):
    """A copy on another device, and its gradient back on the first."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: Cards, device: torch.device) -> Tensor:
        ctx.places, ctx.before = places, places.of(tensor)
        return places.made(device, tensor.clone)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.places.made(ctx.before, gradients[0].clone), None, None


class _Saying(TorchFunctionMode):
    """What Python asks a tensor: to be made somewhere, to move, to become an array."""

    def __init__(self, places: Cards) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._places.asleep:
            return func(*args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and self._places.of(args[0]) != _CPU:
            raise TypeError(f"can't convert {self._places.of(args[0])} device type tensor to numpy")
        if func is Tensor.tolist and self._places.of(args[0]) != _CPU:
            self._places.reads += 1
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, *args, **kwargs)
        if func in (Tensor.__deepcopy__, torch.nn.functional.one_hot):
            device = self._places.of(args[0])
        else:
            device = self._places.named(kwargs.get("device"))
        if device is None or device.type not in ("cpu", "cuda"):
            return func(*args, **kwargs)
        kwargs.pop("device", None)
        return self._places.made(device, func, *args, **kwargs)

    def _moved(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("non_blocking"):
            raise RuntimeError("this copy is read, or what it is of is written to, before it is done: nothing waits")
        wanted = {Tensor.cpu: "cpu", Tensor.cuda: "cuda"}.get(func, kwargs.pop("device", None))
        rest: list[Any] = []
        for one in args:
            if isinstance(one, Tensor):
                wanted, rest = self._places.of(one), [*rest, one.dtype]
            elif isinstance(one, (str, torch.device)) or type(one) is int:
                wanted = one
            elif isinstance(one, torch.dtype):
                rest.append(one)
        device = self._places.named(wanted)
        given = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        if device is None or device == self._places.of(given):
            return given
        return _Moved.apply(given, self._places, device)


class _Refusing(TorchDispatchMode):
    """What an operator does with what it is given: refuse two devices, and leave its result where they are."""

    def __init__(self, places: Cards) -> None:
        super().__init__()
        self._places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._places.asleep:
            return func(*args, **kwargs)
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        cards = {place for one in given if (place := self._places.of(one)) != _CPU}
        apart = {*cards, *(_CPU for one in given if one.dim() and self._places.of(one) == _CPU)}
        if len(apart) > 1 and func.overloadpacket.__name__ not in _MIXING:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {apart} in {func}")
        self._places.reads += bool(cards) and func.overloadpacket.__name__ == "_local_scalar_dense"
        result = func(*args, **kwargs)
        if place := self._places.making or next(iter(cards), None):
            for one in tree_leaves(result):
                if isinstance(one, Tensor) and not any(one is other for other in given):
                    self._places.put(one, place)
        return result


@contextlib.contextmanager
def pretended_cards(current: int = 0) -> Generator[Cards]:
    """Let this thread have the cards ``"cuda:0"`` and ``"cuda:1"`` for a block, without float64, as some kinds are.

    They draw from the CPU's numbers.
    """
    places, cpu = Cards(current), torch.default_generator
    says = {
        "device_count": lambda: 2,
        "current_device": lambda: current,
        "device": lambda _: contextlib.nullcontext(),
        "manual_seed": cpu.manual_seed,
        "get_rng_state": lambda _=None: cpu.get_state(),
        "set_rng_state": lambda state, _=None: cpu.set_state(state),
        "default_generators": (cpu, cpu),
    }
    export = mock.patch.object(torch.export, "export", places.unseen(torch.export.export))
    asked = {
        "device": property(places.of),
        "is_cuda": property(lambda tensor: places.of(tensor).type == "cuda"),
        "is_cpu": property(lambda tensor: places.of(tensor) == _CPU),
    }
    told = mock.patch.multiple(Tensor, **asked)
    # A build of PyTorch for CUDA would ask the driver, before an optimizer's step, what the card's stream is doing.
    unasked = mock.patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check")
    with mock.patch.multiple(torch.cuda, **says), unasked, told, export, _Saying(places), _Refusing(places):
        yield places
