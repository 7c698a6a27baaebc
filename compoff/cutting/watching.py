"""One run of the model, watched, which becomes a `Trace`.

The run is an ordinary one, so that models which no export can follow are understood too.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from compoff.batch import Batch, refusals_named
from compoff.cutting.axes import axis_map, channel_axis, data_arguments, output_channel_axis
from compoff.cutting.flow import SIZED, Operator, Value
from compoff.cutting.macs import count_macs
from compoff.cutting.trace import FunctionCall, ModuleCall, Trace
from compoff.errors import FeatureError, SplitError
from compoff.frozen import to_eval
from compoff.hooks import function_name, uncompiled
from compoff.signature import in_order
from compoff.spare import spare_attributes, spare_buffers
from compoff.trees import KNOWN_CONTAINERS, closed_in, map_tensors, places_of, tensors_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["frozen", "named_modules", "watch"]


@contextlib.contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Run a block with the model in eval mode and no gradients, then give every module its mode and buffers back.

    Args:
        model: The model.

    Yields:
        Nothing.

    Raises:
        SplitError: The model cannot be put into eval mode.

    Examples:
        >>> import torch
        >>> net = torch.nn.Dropout()
        >>> with frozen(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        to_eval(model)
        # Inference mode is left, because its tensors do not tell whether they were changed in place.
        with spare_buffers(model), spare_attributes(model), torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its path, the model itself under the empty one.

    Args:
        model: The model.

    Returns:
        Modules by path; one that has several is listed under the first.
    """
    return dict(cast("Iterator[tuple[str, nn.Module]]", model.named_modules()))


def watch(model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> Trace:
    """Run a model once and record what happens.

    Args:
        model: The model; its modes, buffers and hooks are as before afterwards.
        args: Positional inputs.
        keywords: Keyword inputs.

    Returns:
        The record.

    Raises:
        FeatureError: The model refuses such inputs.
        SplitError: It holds a part that no hook can be hung into, or runs none, or cannot be put into eval mode, or
            what it returns hides its tensors.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> trace = watch(net, (torch.zeros(2, 3, 16, 16),))
        >>> [call.path for call in trace.modules], len(trace.flow.operators), trace.flow.macs(0, 1)
        (['', '0', '1'], 2, 84672)

    Source: this project.
    """
    for name, module in named_modules(model).items():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"'{name}'" if name else "the model"
            raise SplitError(
                f"{what} was compiled by torch.jit, so nothing can be seen of it nor hung into it; give the model as "
                "it was written"
            )
    asked: Any = (args, keywords or {})
    # Own tensors of the same values: the model may write to them, and the caller's may be known to hooks or caches of
    # the model. Those that are given twice are one memory, under two names.
    given = Batch(*asked).copy()
    called: Any = map_tensors((given.args, given.kwargs), lambda tensor: tensor.view_as(tensor))
    with refusals_named(Batch(*called)):
        args, keywords = in_order(model, *called, defaults=True)
    watcher = _Watcher(model, (args, keywords))
    try:
        named = refusals_named(Batch(args, keywords), model)
        with uncompiled(model), frozen(model), named, _Functions(watcher), watcher:
            output: Any = model(*args, **keywords)
    except FeatureError as error:
        if isinstance(error.__cause__, NotImplementedError) and "HigherOrderOperator" in str(error.__cause__):
            raise SplitError(
                "the model calls an operator that runs functions of its own, such as torch.cond or torch.while_loop, "
                f"which cannot be followed ({str(error.__cause__).partition(' and mode')[0]}); write it with "
                "torch.where, or as a plain branch"
            ) from error
        raise
    finally:
        watcher.remove()
    if not watcher.trace.modules or watcher.trace.modules[0].path:
        name = type(model).__name__
        raise SplitError(
            f"{name}.__call__ does not run the model's hooks, by which it is cut; let it call super().__call__, or "
            "leave it to torch.nn.Module"
        )
    watcher.finish(output)
    if watcher.trace.batch:
        watcher.trace.again = lambda: watch(model, *_resized(asked, watcher.trace.batch))
    return watcher.trace


def _resized(called: Any, batch: int) -> Any:
    """The same call with another number of samples: few, but not one, which models like to treat otherwise."""
    samples = torch.arange(2 if batch > 2 else 3, device="cpu") % batch
    return map_tensors(
        called,
        lambda tensor: tensor[samples.to(tensor.device)] if tensor.dim() and len(tensor) == batch else tensor,
    )


class _Watcher(TorchDispatchMode):
    """Sees every operator; its hooks see every module call."""

    def __init__(self, model: nn.Module, called: Any) -> None:
        super().__init__()
        self.trace = Trace()
        self._known: Any = WeakIdKeyDictionary()  # tensor: (number of its value, operators run when it got it)
        self._written: dict[int, int] = {}  # storage: index of the last operator that wrote into it
        self._shared: set[int] = set()  # storages of inputs and constants, which are not ours to write into
        self._storages: dict[int, Any] = {}
        self._open: list[int] = []
        self._returns = 0
        self._counts: Counter[str] = Counter()
        self._function_counts: Counter[tuple[int, str]] = Counter()
        self._names = {module: name for name, module in named_modules(model).items()}
        flow, inputs = self.trace.flow, tensors_of(called)
        self.trace.given_at = tuple(places_of(called))
        for tensor in inputs:
            self._shared.add(self._storage(tensor))
            flow.inputs.append(self._new(tensor, made_by=-1, depends=True))
        self.trace.batch = next((len(tensor) for tensor in inputs if tensor.dim()), 0)
        self._handles = [
            hook
            for module in self._names
            for hook in (
                module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),  # a model may catch what a child raises
            )
        ]

    def remove(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()

    def finish(self, output: Any) -> None:
        """Note what the model returned; without that, nothing that it computes seems to be needed."""
        self.trace.flow.outputs = [self.number_of(tensor) for tensor in tensors_of(output)]
        if not self.trace.flow.outputs and (closed := closed_in(output)):
            raise SplitError(
                f"the model returns an object of class {closed}; tensors are looked for in {KNOWN_CONTAINERS}. Wrap "
                "the model in a module that returns one of these"
            )

    def number_of(self, tensor: Tensor) -> int:
        """The value that a tensor holds now."""
        found = self._known.get(tensor)
        if found is None:
            self._shared.add(self._storage(tensor))
            found = (self._new(tensor, made_by=-1, depends=False), -1)
        number, since = found
        writer = self._written.get(self._storage(tensor), -1)
        if writer >= max(since, 0):
            operator, before = self.trace.flow.operators[writer], self.trace.flow.values[number]
            depends = before.depends or any(self.trace.flow.values[read].depends for read in operator.reads)
            number = self._new(tensor, made_by=writer, depends=depends, view_of=before.view_of)
        return number

    def saw_function(self, name: str, output: Any) -> None:
        """Note a function of torch that returned tensors."""
        tensors = tensors_of(output)
        if tensors and self._open:
            scope, trace = self._open[-1], self.trace
            returned = tuple(self.number_of(tensor) for tensor in tensors)
            number = self._function_counts[scope, name]
            self._function_counts.update((call, name) for call in self._open)
            at = tuple(places_of(output))
            trace.functions.append(FunctionCall(scope, name, number, len(trace.flow.operators), returned, at))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        given = tensors_of((args, kwargs))
        reads = tuple(self.number_of(tensor) for tensor in given)
        output = func(*args, **kwargs)
        self._record(func, args, given, reads, output)
        return output

    def _record(self, func: Any, args: Any, given: list[Tensor], reads: tuple[int, ...], output: Any) -> None:
        """Note one operator."""
        flow = self.trace.flow
        index, made = len(flow.operators), tensors_of(output)
        name, sized = func.name(), func in SIZED
        written = {self._storage(tensor) for tensor in _mutated(func, args)}
        depends = not sized and any(flow.values[read].depends for read in reads)
        flow.operators.append(
            Operator(
                index,
                name,
                reads if not sized else (),
                (),
                count_macs(func, args, output),
                tuple(reads[place] for place in data_arguments(func, given, made)),
                axis_map(func, given, args, output),
                channel_axis(func, given),
                output_channel_axis(func, output),
                repeats=torch.Tag.nondeterministic_seeded not in func.tags,
            )
        )
        for storage in written:
            self._written[storage] = index
        homes = {self._storage(tensor): number for tensor, number in zip(given, reads, strict=True)}
        makes = tuple(
            self.number_of(tensor)
            if self._storage(tensor) in written
            else self._new(tensor, made_by=index, depends=depends, view_of=homes.get(self._storage(tensor)))
            for tensor in made
        )
        flow.operators[index] = replace(flow.operators[index], makes=makes)

    def _new(self, tensor: Tensor, *, made_by: int, depends: bool, view_of: int | None = None) -> int:
        """A new value for a tensor."""
        flow = self.trace.flow
        number = len(flow.values)
        own = view_of is None and self._storage(tensor) not in self._shared and tensor.numel() > 0
        shape, dtype = tuple(tensor.shape), tensor.dtype
        flow.values.append(Value(number, shape, dtype, made_by, depends, own, view_of, tensor.device))
        self._known[tensor] = (number, len(flow.operators))
        return number

    def _storage(self, tensor: Tensor) -> int:
        """Which memory a tensor lies in; the tensor itself where it has none that can be asked for."""
        try:
            found = StorageWeakRef(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):
            return id(tensor)
        # Held weakly, so that memory is freed as ever, but its name is not given to another one meanwhile.
        return int(self._storages.setdefault(int(found.cdata), found).cdata)  # pyright: ignore[reportUnknownArgumentType]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        trace, path = self.trace, self._names[module]
        entered = tuple(self.number_of(tensor) for tensor in tensors_of((args, kwargs)))
        scope = self._open[-1] if self._open else -1
        at = tuple(places_of((args, kwargs)))
        begin = len(trace.flow.operators)
        closed = None if entered else closed_in((args, kwargs))
        trace.modules.append(ModuleCall(path, self._counts[path], begin, scope, entered, entered_at=at, closed=closed))
        self._counts[path] += 1
        self._open.append(len(trace.modules) - 1)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module, args
        call = self.trace.modules[self._open.pop()]
        call.end = len(self.trace.flow.operators)
        call.order, self._returns = self._returns, self._returns + 1
        call.returned = tuple(self.number_of(tensor) for tensor in tensors_of(output))
        call.returned_at = tuple(places_of(output))


class _Functions(TorchFunctionMode):
    """Sees every function of torch that the model calls."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self._watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        self._watcher.saw_function(function_name(func), output)
        return output


def _mutated(func: Any, args: Any) -> list[Tensor]:
    """Tensors that an operator writes into."""
    if not func._schema.is_mutable:
        return []
    written: list[Tensor] = []
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.extend(tensors_of(value))
    return written
