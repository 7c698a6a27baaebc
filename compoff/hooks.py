"""Places where a tensor passes, and the hooks that hand it to whoever wants to catch it there.

At the model's inputs, at a module's ends, and at a function's result. Each hook is an object that owns its catcher,
never a closure, so that a copied or pickled model owns its own. Knows no codec.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,  # pyright: ignore[reportPrivateUsage] - there is no public way
    _get_current_function_mode_stack,  # pyright: ignore[reportPrivateUsage]
    _pop_mode,  # pyright: ignore[reportPrivateUsage]
)

from compoff.errors import FeatureError
from compoff.signature import in_order
from compoff.trees import Place, tensor_at, tensors_of, with_tensor

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

__all__ = ["Adapting", "Catcher", "Tap", "catchers", "function_name", "hang", "heed_hooks", "stop_listening", "traced"]


@dataclass(frozen=True)
class Tap:
    """One place where a tensor passes.

    Args:
        kind: ``"input"``: among the inputs of the model; ``"output"``: returned by a module; ``"function"``: returned
            by a function of torch; ``"entry"``: among the arguments of a module.
        leaf: Which of the tensors there, counted in order.
        path: The module; for a function, the module that called it.
        call: Which call of that module in one pass.
        repeated: Whether the module is called more than once in one pass.
        function: Name of the function.
        number: Which call of that function in that call of the module.
        place: The way to the tensor there, which stays the same where an optional tensor before it is left out; None
            in what was saved before there was one.
    """

    kind: Literal["input", "output", "function", "entry"]
    leaf: int
    path: str = ""
    call: int = 0
    repeated: bool = False
    function: str = ""
    number: int = 0
    place: Place | None = None

    def __str__(self) -> str:
        """The place in words."""
        call = f" (call {self.call})" if self.repeated else ""
        if self.kind == "input":
            return f"input {self.leaf} of the model"
        if self.kind == "function":
            return f"{self.function}() in {self.path or 'the model'}{call}"
        return f"{'output' if self.kind == 'output' else 'input'} of {self.path}{call}"


class Catcher(Protocol):
    """Whoever wants the tensors; `compoff.gates.Gate` is one."""

    passes: int

    @property
    def active(self) -> bool:
        """Whether it wants them in this pass."""
        ...

    @property
    def at_work(self) -> bool:
        """Whether it is computing something itself, which is no part of the model."""
        ...

    def begin(self) -> None:
        """A pass begins."""
        ...

    def catch(self, index: int, tensor: Tensor) -> Tensor:
        """Take a tensor, and give back what the model goes on with."""
        ...


class Adapts(Protocol):
    """Whoever changes what layers return; `compoff.gates.Gate` is one."""

    def adapt(self, index: int, tensor: Tensor) -> Tensor:
        """Take what a layer returns, and give back what the model goes on with."""
        ...


def hang(model: nn.Module, catcher: Catcher, taps: Sequence[Tap]) -> list[RemovableHandle]:
    """Hang hooks into a model.

    Args:
        model: The model.
        catcher: Who gets the tensors; the first of them last, so that all others are there when it comes.
        taps: Where the tensors pass, one place each.

    Returns:
        What takes the hooks out again.
    """
    handles = [model.register_forward_pre_hook(_Begin(catcher))]
    for index in [*range(1, len(taps)), 0]:
        handles += _hang(model, catcher, index, taps[index])
    return handles


def _hang(model: nn.Module, catcher: Catcher, index: int, tap: Tap) -> list[RemovableHandle]:
    """Hang the hook for one tensor."""
    module = model.get_submodule(tap.path)
    if tap.kind in ("input", "entry"):
        return [module.register_forward_pre_hook(_Arguments(catcher, index, tap), with_kwargs=True)]
    if tap.kind == "output":
        return [module.register_forward_hook(_Result(catcher, index, tap))]
    scope = _Scope(catcher, index, tap)
    return [
        module.register_forward_pre_hook(scope),
        module.register_forward_hook(_EndOfScope(scope), always_call=True),
    ]


def stop_listening(model: nn.Module) -> None:
    """End what hooks of this model have begun and nothing has ended.

    So it is where the model was left by an exception while it was traced, or by what is no `Exception`, such as Ctrl-C:
    PyTorch calls no hook then that would end it by itself.

    Args:
        model: The model, which nobody is running.
    """
    if not isinstance(_get_current_function_mode(), _FunctionTap):
        return
    scopes = {id(scope) for scope in _scopes(model)}
    while isinstance(top := _get_current_function_mode(), _FunctionTap) and id(top.scope) in scopes:
        top.__exit__(None, None, None)
        top.scope.mode = None


@contextlib.contextmanager
def traced(model: nn.Module) -> Generator[None]:
    """Trace a model inside a block; where an exception ends that, PyTorch's modes are again what they were.

    A tracer takes its own mode away from above all others. Where the model was left in the middle, that is one of ours
    that nothing has ended, and its own would stay, for all that this thread does from then on.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    depth = len(_get_current_function_mode_stack())
    try:
        yield
    except BaseException:
        stop_listening(model)
        while len(_get_current_function_mode_stack()) > depth:
            _pop_mode()
        for scope in _scopes(model):
            scope.mode = None
        raise


def _scopes(model: nn.Module) -> list[_Scope]:
    hooks: list[Any] = []
    for module in model.modules():
        hooks += module._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage] - there is no public way
    return [hook for hook in hooks if isinstance(hook, _Scope)]


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Run a model that was compiled as it was written, inside a block.

    A compiler sees neither modules nor operators to listen to, and starts anew whenever hooks change.

    Args:
        model: The model; one that is not compiled runs as ever, and so does what is being compiled with it.

    Returns:
        The context manager.
    """
    if torch.compiler.is_compiling() or not any(map(_is_compiled, model.modules())):
        return contextlib.nullcontext()
    return cast("AbstractContextManager[Any]", torch.compiler.set_stance("force_eager"))


def heed_hooks() -> None:
    """Have ``torch.compile`` notice hooks that come and go, in this process and from now on.

    By default it takes a module without hooks for one that never has any. A model that was compiled before it was
    wrapped, or after another of its class was wrapped elsewhere, would go on as if no codec hung in it, without a word.
    """
    from torch._dynamo import config  # slow to import; an optimizer and an export do so, too

    if getattr(config, "skip_nnmodule_hook_guards", False):
        config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()  # what was compiled until now does not look


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None  # pyright: ignore[reportPrivateUsage] - there is no public way


def catchers(module: nn.Module) -> list[Any]:
    """Who has hung hooks on one module.

    Args:
        module: The module.

    Returns:
        The catchers of our hooks on it.
    """
    hooks: list[Any] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]  # pyright: ignore[reportPrivateUsage] - there is no public way
    return [hook.catcher for hook in hooks if isinstance(hook, (_Begin, _Hook))]


def function_name(func: Any) -> str:
    """What a function of torch is called: the same in every run.

    Args:
        func: The function.

    Returns:
        Its name.

    Examples:
        >>> import torch
        >>> function_name(torch.nn.functional.relu), function_name(torch.Tensor.add)
        ('relu', 'add')
    """
    return str(getattr(func, "__name__", None) or func)


class _Hook:
    """What the hooks have in common: a catcher, a place, and which call of the module it is.

    Args:
        catcher: Who gets the tensor.
        index: Which of the catcher's tensors it is.
        tap: The place.
    """

    def __init__(self, catcher: Catcher, index: int, tap: Tap) -> None:
        self.catcher = catcher
        self.index = index
        self.tap = tap
        self._pass = -1
        self._calls = 0

    def _is_due(self) -> bool:
        """Whether this is the call that is meant, of a catcher that is active; counts the calls of a pass."""
        if not self.tap.repeated:
            return True
        if self._pass != self.catcher.passes:
            self._pass, self._calls = self.catcher.passes, 0
        self._calls += 1
        return self._calls == self.tap.call + 1

    def catch_in(self, value: Any) -> Any:
        """Hand over the tensor that is meant among those in `value`; returns what the model goes on with."""
        tap = self.tap
        try:
            tensor = tensor_at(value, tap.leaf if tap.place is None else tap.place)
        except LookupError:
            raise FeatureError(
                f"the tensor that crosses is {tap}, but this call has none there; call the model with the inputs that "
                "it was wrapped with, or wrap it again with an example_input of this kind"
            ) from None
        return with_tensor(value, tensor, self.catcher.catch(self.index, tensor))


class _Begin:
    """Tell a catcher that a pass begins, as a forward pre-hook of the model.

    Args:
        catcher: Who gets the tensor.
    """

    def __init__(self, catcher: Catcher) -> None:
        self.catcher = catcher

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Begin."""
        del module, args
        if self.catcher.active:
            self.catcher.begin()


class _Result(_Hook):
    """Catch a tensor that a module returns: every reader, skips included, then has the same one."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Pass the tensor through the catcher, as a forward hook."""
        del module, args
        if not self.catcher.active or not self._is_due():
            return None
        return self.catch_in(output)


class _Arguments(_Hook):
    """Catch a tensor among the arguments of a module, or of the model itself."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Pass the tensor through the catcher, as a forward pre-hook."""
        if not self.catcher.active or not self._is_due():
            return None
        if kwargs and self.tap.kind == "input":  # the caller's order of names is not always the one that was traced
            with contextlib.suppress(TypeError):  # which the model itself will raise
                args, kwargs = in_order(module, args, kwargs, defaults=True)
        return self.catch_in((args, kwargs))


class Adapting:
    """Let somebody change what a layer returns, as a forward hook of the layer.

    Args:
        adapts: Who changes it.
        index: Which of its layers this is.
    """

    def __init__(self, adapts: Adapts, index: int) -> None:
        self.adapts = adapts
        self.index = index

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Pass the tensor through."""
        del module, args
        return self.adapts.adapt(self.index, output)


class _Scope(_Hook):
    """Catch what a function of torch returns, while the module that calls it runs; a forward pre-hook."""

    def __init__(self, catcher: Catcher, index: int, tap: Tap) -> None:
        super().__init__(catcher, index, tap)
        self.mode: _FunctionTap | None = None

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Begin to listen."""
        del module, args
        if self.catcher.active and self._is_due():
            self.mode = _FunctionTap(self)
            self.mode.__enter__()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one running pass."""
        return {**self.__dict__, "mode": None}


class _EndOfScope:
    """End what a `_Scope` began; a forward hook that is always called.

    Args:
        scope: The beginning.
    """

    def __init__(self, scope: _Scope) -> None:
        self.scope = scope

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """End."""
        del module, args, output
        mode, self.scope.mode = self.scope.mode, None
        if mode is not None:
            mode.__exit__(None, None, None)


class _FunctionTap(TorchFunctionMode):
    """Counts calls of one function and catches the result of one of them."""

    def __init__(self, scope: _Scope) -> None:
        super().__init__()
        self.scope = scope
        self._calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        scope, tap = self.scope, self.scope.tap
        # What a catcher itself calls is no part of the model.
        if scope.catcher.at_work or function_name(func) != tap.function or not tensors_of(output):
            return output
        self._calls += 1
        return scope.catch_in(output) if self._calls == tap.number + 1 else output
