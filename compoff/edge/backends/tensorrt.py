"""A tail's program in TensorRT, through torch_tensorrt: the symbols go to the GPU as bytes, all else happens there.

Half precision comes from torch_tensorrt's autocast, in which sizes and whole numbers have no place; `narrowed` makes
them go where it can, and says where it cannot.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import tempfile
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.export.passes import move_to_device_pass

from compoff.edge.backends.eager import PROGRAM
from compoff.edge.backends.engine import Engine, engine_key
from compoff.edge.backends.graphs import batched_parts, example_tensors, prepared
from compoff.edge.backends.samples import sample_parts
from compoff.errors import BackendError
from compoff.printable import told
from compoff.programs import TorchProgram, read_program, to_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    from compoff.manifest import Manifest

__all__ = ["TensorrtBackend", "build", "narrowed"]

_PACKAGES = ("torch_tensorrt", "tensorrt")
_USUAL_BATCH = 8  # what the kernels are chosen for; every batch up to max_batch runs
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)


class TensorrtBackend:
    """Runs a tail in a TensorRT engine, as a CUDA graph.

    Args:
        engine: The engine, inside a program of torch_tensorrt; it has been checked by whoever gives it.
        manifest: What the tail is.
        device: The GPU.

    Raises:
        BackendError: torch_tensorrt is missing or cannot load the engine.
    """

    def __init__(self, engine: Engine, manifest: Manifest, device: str = "cuda") -> None:
        runtime = _torch_tensorrt()
        self._engine = engine
        self._device = torch.device(device)
        self._dtypes = [getattr(torch, spec.dtype) for spec in manifest.outputs]
        self._lock = threading.Lock()  # a graph has one place for its inputs
        try:
            module = read_program(engine.data).module()
            # Records again where the batch size changes.
            self._call: Any = runtime.runtime.enable_cudagraphs(module).__enter__()
        except Exception as error:  # it raises many types for one fact
            raise BackendError(
                f"torch_tensorrt {runtime.__version__} cannot load the engine ({told(error)}); compile the tail again"
            ) from error

    @property
    def files(self) -> dict[str, bytes]:
        """The program and the engine as files of an artifact, by name."""
        return self._engine.files

    @property
    def engine(self) -> Engine:
        """The engine, for another one to be made from it with other weights."""
        return self._engine

    def run(self, parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Turn what crossed the cut into the leaves of the model's output.

        Args:
            parts: Of one batch, the symbols of each code, then the side tensors.

        Returns:
            One array a leaf, of the model's own dtypes.
        """
        tensors = [to_tensor(part).to(self._device) for part in parts]
        with self._lock, torch.inference_mode():
            outputs = self._call(*tensors)
            leaves = [outputs] if isinstance(outputs, Tensor) else outputs
            return [leaf.to("cpu", dtype).numpy() for leaf, dtype in zip(leaves, self._dtypes, strict=True)]

    @staticmethod
    def missing() -> str:
        """What is not installed of what this needs; empty where nothing is missing."""
        for name in _PACKAGES:
            if importlib.util.find_spec(name) is None:
                return f'{name} is not installed: pip install "compoff[tensorrt]" on a machine with an NVIDIA GPU'
        return "" if torch.cuda.is_available() else "there is no CUDA device here"

    @staticmethod
    def key(manifest: Manifest, source: bytes, device: str) -> dict[str, str]:
        """What an engine made here and now is good for: these versions on this GPU."""
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        versions |= {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
        return engine_key(manifest, source, device, versions)

    @classmethod
    def compile(cls, manifest: Manifest, source: bytes, device: str, like: Engine | None = None) -> Engine:
        """Build an engine for this GPU; takes minutes. Or put other weights into one.

        Args:
            manifest: What the tail is.
            source: The program as a ``.pt2`` file.
            device: The GPU.
            like: An engine of the same network, which takes over this program's weights.

        Returns:
            The engine.

        Raises:
            BackendError: Something is not installed, or TensorRT cannot build the engine.
        """
        if torch.device(device).type != "cuda":
            raise BackendError(f"TensorRT runs on an NVIDIA GPU, device is '{device}'; give device='cuda'")
        runtime, key = _torch_tensorrt(), cls.key(manifest, source, device)
        exported = TorchProgram.load(source, PROGRAM).exported
        try:
            exported = prepared(move_to_device_pass(exported, device), manifest, device, decompose=False)
            with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="compoff-") as folder:
                warnings.simplefilter("ignore")  # deprecations inside the compiler
                if like is None:
                    timing = str(Path(folder, "timing.bin"))  # by default it would lie where others can write
                    module = build(runtime, exported, manifest, device, timing_cache_path=timing)
                else:
                    old = read_program(like.data)
                    module = runtime.dynamo.refit_module_weights(
                        old, exported, arg_inputs=example_tensors(manifest, device)
                    )
                path = Path(folder, "engine.pt2")
                runtime.save(module, str(path), arg_inputs=list(example_tensors(manifest, device)), retrace=True)
                return Engine("tensorrt", key, path.read_bytes(), source)
        except Exception as error:  # the compiler raises many types for one fact
            raise BackendError(
                f"the tail at '{manifest.split}' cannot be built by TensorRT on '{device}' ({told(error)}); choose "
                "backend='inductor'"
            ) from error


def build(runtime: Any, exported: ExportedProgram, manifest: Manifest, device: str, **options: Any) -> fx.GraphModule:
    """Have torch_tensorrt build a program.

    Args:
        runtime: The module torch_tensorrt.
        exported: The program, its batch bounded.
        manifest: What the tail is.
        device: The GPU.
        **options: Further options of the compiler.

    Returns:
        A graph that calls the engine.
    """
    usual = min(_USUAL_BATCH, manifest.max_batch)
    inputs = [
        runtime.Input(
            min_shape=(1, *part.shape[1:]),
            opt_shape=(usual, *part.shape[1:]),
            max_shape=(manifest.max_batch, *part.shape[1:]),
            dtype=to_tensor(part).dtype,
        )
        if batched
        else runtime.Input(shape=part.shape, dtype=to_tensor(part).dtype)
        for part, batched in zip(sample_parts(manifest, 1), batched_parts(manifest), strict=True)
    ]
    if narrowed(exported):
        options |= {"enable_autocast": True, "autocast_low_precision_type": torch.float16}
    return runtime.dynamo.compile(
        exported,
        arg_inputs=inputs,
        device=torch.device(device),
        min_block_size=1,
        offload_module_to_cpu=False,
        immutable_weights=False,  # so that a tail that is fitted again needs no new engine
        **options,
    )


def narrowed(exported: ExportedProgram) -> bool:
    """Prepare a program for autocast, which takes every value for a floating-point tensor of the narrow type.

    Where a view names the length of the batch it is told to find it out itself, and symbols become narrow numbers at
    once, which hold all 256 of them.

    Args:
        exported: The program; changed.

    Returns:
        Whether every value is one, so that autocast is right.
    """
    graph = exported.graph
    for node in graph.nodes:
        if node.target in _VIEWS:
            sizes: list[Any] = list(node.args[1])
            named = [place for place, size in enumerate(sizes) if isinstance(size, fx.Node)]
            if len(named) == 1 and -1 not in sizes:
                sizes[named[0]] = -1
                node.args = (node.args[0], sizes)
    graph.eliminate_dead_code()
    calls = [node for node in graph.nodes if node.op == "call_function"]
    right = all(_converts_symbols(node) or _is_float(node) for node in calls)
    for node in calls if right else ():
        if _converts_symbols(node) and node.kwargs["dtype"] == torch.float32:
            node.kwargs = {**node.kwargs, "dtype": torch.float16}
            node.meta["val"] = node.meta["val"].half()
    exported.graph_module.recompile()
    return right


def _converts_symbols(node: fx.Node) -> bool:
    """Whether a node turns symbols into numbers."""
    source = node.args[0] if node.target == torch.ops.aten._to_copy.default else None
    value = source.meta.get("val") if isinstance(source, fx.Node) and source.op == "placeholder" else None
    return isinstance(value, Tensor) and value.dtype == torch.uint8


def _is_float(node: fx.Node) -> bool:
    """Whether a node is a floating-point tensor made from such, or from symbols, and says of no type itself."""
    values = [one.meta.get("val") for one in (node, *node.all_input_nodes) if not _converts_symbols(one)]
    named = any(isinstance(word, torch.dtype) for word in (*node.args, *node.kwargs.values()))
    floats = all(isinstance(value, Tensor) and value.dtype == torch.float32 for value in values)
    return bool(node.all_input_nodes) and floats and not named


def _torch_tensorrt() -> Any:
    """The library; where its libraries are not found it raises no ImportError, so every error means the same."""
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:
        raise BackendError(
            f'torch_tensorrt cannot be imported ({told(error)}): pip install "compoff[tensorrt]" with the torch that '
            "it names, on a machine with an NVIDIA GPU"
        ) from error
