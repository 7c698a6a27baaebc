"""Tail: what runs on the edge. Payloads to what the model returns.

Decodes and checks the bytes, runs the program of its backend. Knows no sockets; `server` calls `answer`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compoff.artifact import read_folder, write_folder
from compoff.coding import Decoded, Payload
from compoff.edge.backends.backend import NestedBackend
from compoff.edge.backends.choosing import Choice, check_device, compile_backend, load_backend
from compoff.edge.backends.eager import PROGRAM
from compoff.edge.backends.module import ModuleBackend
from compoff.edge.described import Described
from compoff.errors import ArtifactMismatch, BackendError, PayloadError
from compoff.manifest import DTYPES
from compoff.parts import find_part
from compoff.pickling import Unpickled
from compoff.structure import flatten, importable, unflatten
from compoff.weights import WeightPool
from compoff.wire.nested import nested_arrays, restore_nested
from compoff.wire.tensors import pack

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from compoff.coding import SymbolTables
    from compoff.edge.backends.backend import Backend
    from compoff.edge.backends.choosing import BackendName
    from compoff.edge.backends.module import Factory
    from compoff.edge.server import Server
    from compoff.manifest import Manifest
    from compoff.wire.security import Tokens
    from compoff.wire.tls import TLS

__all__ = ["Tail"]

_log = logging.getLogger("compoff.engine")

_EAGER = Choice("eager", "as it was exported")


class Tail(Unpickled, Described):
    """The part of a model that runs on the edge, from the bytes that arrive.

    Made by `compoff.export` or `Tail.load`.

    Args:
        manifest: What this tail is.
        tables: The coder's tables, one a code.
        backend: The runtime that holds the program.
        choice: Which runtime that is, where it runs, and why it was taken.

    Raises:
        BackendError: The manifest does not know the outputs, and the backend cannot run such a model.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> x = torch.randn(2, 3, 16, 16)
        >>> model = compoff.wrap(net, "input", example_input=x)
        >>> head, tail = compoff.export(model, "input")
        >>> [y.shape for y in tail([head(x), head(x[:1])])]
        [torch.Size([2, 5]), torch.Size([1, 5])]

    Source: DeepCOD (SenSys 2020), Sec. 3, Fig. 2 (right).
    """

    _elsewhere = "save it, and call compoff.Tail.load(folder) there"

    def __init__(
        self, manifest: Manifest, tables: Sequence[SymbolTables], backend: Backend, choice: Choice = _EAGER
    ) -> None:
        self.backend = backend
        self.choice = choice
        if not manifest.structure and not isinstance(backend, NestedBackend):
            raise BackendError(
                f"the outputs of {manifest.model} are known only once it has answered, which a "
                f"{type(backend).__name__} cannot do; run it with a backend that has run_nested"
            )
        super().__init__(manifest, tables)

    def __repr__(self) -> str:
        runtime = "" if self.choice.backend == "eager" else f", {self.choice.backend}"
        return f"Tail({self.manifest.model} at '{self.split}', id {self.manifest.artifact_id[:8]}{runtime})"

    def __call__(self, payload: Payload | Buffer | Sequence[Payload | Buffer]) -> Any:
        """Turn payloads into what the model returns.

        Args:
            payload: One payload, as a head gave it or as its bytes (``bytes``, ``bytearray``, ``memoryview``); or a
                list of them, which run as one batch where everything in them has a batch axis.

        Returns:
            The model's output, nested as the model nests it, in torch tensors; for a list, a list of outputs.

        Raises:
            PayloadError: Bytes are damaged or of another export.
            ArtifactMismatch: A payload object is of another export.
        """
        if not isinstance(payload, (list, tuple)):
            return self._output(self._run(self._decoded(payload)))
        return [self._output(leaves) for leaves in self.run([self._decoded(one) for one in payload])]

    @property
    def _batches(self) -> bool:
        """Whether several payloads, of whichever qualities, can run as one: everything has a batch axis."""
        manifest = self.manifest
        return bool(manifest.structure) and all(spec.batched for spec in (*manifest.sides, *manifest.outputs))

    def _as_one_batch(self, payloads: Sequence[Decoded]) -> list[list[NDArray[Any]]]:
        """Run several batches as one and take the outputs apart again."""
        parts = zip(*map(self.tensors, payloads), strict=True)
        leaves = self.backend.run([np.concatenate(pieces) for pieces in parts])
        ends = np.cumsum([decoded.batch_size for decoded in payloads])[:-1]
        return [list(pieces) for pieces in zip(*(np.split(leaf, ends) for leaf in leaves), strict=True)]

    def _run(self, decoded: Decoded) -> list[NDArray[Any]]:
        parts = self.tensors(decoded)
        if self.manifest.structure or not isinstance(self.backend, NestedBackend):
            return self.backend.run(parts)
        leaves, description = flatten(self.backend.run_nested(parts), _is_tensor, "the model returned")
        return nested_arrays(description, [_array(leaf) for leaf in leaves], self.manifest.max_reply_bytes)

    def _decoded(self, payload: Any) -> Decoded:
        """Decode one payload."""
        if isinstance(payload, Payload) and payload.artifact_id != self.artifact_id:
            raise ArtifactMismatch(
                f"the payload was made by the head of export {payload.artifact_id.hex()[:8]}, this tail is of export "
                f"{self.manifest.artifact_id[:8]}; load head and tail of the same export"
            )
        return self.payload_format.decode(payload)

    def _output(self, leaves: list[NDArray[Any]]) -> Any:
        if not self.manifest.structure:
            return restore_nested(leaves, torch.from_numpy, importable)  # pyright: ignore[reportUnknownArgumentType]
        return unflatten(self.manifest.structure, [torch.from_numpy(leaf) for leaf in leaves], importable)

    def decode(self, payload: Payload | Buffer) -> Decoded:
        """Decode one request from the wire, for `run`.

        Args:
            payload: The bytes that arrived, or a payload as a head gave it.

        Returns:
            What `run` takes; its length is the number of samples.

        Raises:
            PayloadError: The bytes are damaged or of another export.
        """
        return self._decoded(payload)

    def tensors(self, decoded: Decoded) -> list[NDArray[Any]]:
        """What the program takes of one request, for a runtime of your own, such as Triton.

        Args:
            decoded: What `decode` made of it.

        Returns:
            Whole latents, whatever quality was sent, then the side tensors.

        Raises:
            PayloadError: It is something else, such as the payload itself.
        """
        if not isinstance(decoded, Decoded):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PayloadError(f"a {type(decoded).__name__} was given; expected what Tail.decode made of a payload")
        codes = self.payload_format.codes
        latents = [code.whole(part, decoded.quality) for code, part in zip(codes, decoded.symbols, strict=True)]
        return [*latents, *decoded.sides]

    def run(self, decoded: Sequence[Decoded]) -> list[list[NDArray[Any]]]:
        """Answer several decoded requests in one run.

        Args:
            decoded: What `decode` made of each.

        Returns:
            The leaves of the output of each; before them its structure, where the manifest does not know it.

        Raises:
            PayloadError: One of them is something else, or it is no list of them.
        """
        if isinstance(decoded, Decoded):
            raise PayloadError("one decoded request was given; expected a list of them: tail.run([decoded])")
        if len(decoded) > 1 and self._batches:
            return self._as_one_batch(decoded)
        return [self._run(one) for one in decoded]

    def answer(self, payload: Payload | Buffer) -> bytes:
        """Answer one request from the wire.

        Args:
            payload: The bytes that arrived, or a payload as a head gave it.

        Returns:
            The bytes to send back: the leaves of the output, packed.

        Raises:
            PayloadError: The bytes are damaged or of another export.
        """
        return pack(self._run(self._decoded(payload)))

    def compile(
        self, backend: BackendName = "auto", *, device: str | int | torch.device | None = None, like: Tail | None = None
    ) -> Tail:
        """Compile this tail for the machine it runs on; this one stays as it is.

        What is compiled is compared with PyTorch on batches of random symbols before it is used. `save` then stores the
        engine beside the program that it was made from, and `load` takes it where it still fits.

        Args:
            backend: ``"onnx"`` (onnxruntime, on the CPU), ``"inductor"`` (AOTInductor; on a GPU with CUDA graphs),
                ``"tensorrt"`` (TensorRT through torch_tensorrt, in half precision), ``"eager"`` (PyTorch), or
                ``"auto"``, the fastest of these that works here; `choice` says which and why.
            device: Where it is to run; None for the GPU with TensorRT, else for where this tail runs.
            like: A tail of the same network, compiled for TensorRT before the codec was fitted again: its engine takes
                over this tail's weights, which takes seconds where building one takes minutes. As many channels must
                have been exported then.

        Returns:
            The same tail in that runtime.

        Raises:
            BackendError: The backend is not installed, cannot run this tail, or does not agree with PyTorch; or the
                tail runs the user's own model.

        Examples:
            >>> import torch, compoff
            >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
            >>> model = compoff.wrap(net, "2", example_input=torch.zeros(2, 8))
            >>> head, tail = compoff.export(model, "2")
            >>> same = tail.compile("eager")  # or "onnx", "inductor", "tensorrt", "auto"
            >>> same.choice.backend, same(head(torch.ones(4, 8))).shape
            ('eager', torch.Size([4, 3]))

        Source: this project.
        """
        if like is not None and not isinstance(like, Tail):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BackendError(f"like is a {type(like).__name__}; expected another compoff.Tail")
        mine, its = ([code.latent_shape for code in one.manifest.codes] for one in (self, like or self))
        if mine != its:
            raise BackendError(
                f"like was compiled for symbols of {its}, and this tail takes {mine}; an engine takes over weights of "
                "the same shapes only: compile without like="
            )
        where = ("cuda" if backend == "tensorrt" else self.choice.device) if device is None else device
        source, previous = self.backend.files.get(PROGRAM), None if like is None else like.backend
        if source is None:
            return Tail(self.manifest, self.tables, self.backend, _uncompiled(self.manifest, backend, where))
        return Tail(self.manifest, self.tables, *compile_backend(self.manifest, source, backend, where, previous))

    def serve(
        self,
        address: str = "127.0.0.1:7878",
        *,
        token: Tokens = None,
        tls: TLS | ssl.SSLContext | None = None,
        insecure: bool = False,
    ) -> Server:
        """Serve this tail in the background; `compoff.serve` takes several tails and every option.

        The server ends with the program: `Server.wait` keeps that from ending.

        Args:
            address: ``"host:port"``; port 0 picks a free one.
            token: Token that devices must show, or several of which one will do; None to ask for none.
            tls: Certificates, or a context of your own; needed where other machines can connect.
            insecure: Whether they may connect without encryption.

        Returns:
            The running server.

        Raises:
            WireError: The address cannot be listened on.
            LocalProtocolError: It is no address, or other machines could connect and there are no certificates.
        """
        from compoff.edge.server import serve  # the server knows tails only by their interface

        return serve(self, address, token=token, tls=tls, insecure=insecure)

    def save(self, path: str | Path, *, weights: str | Path | None = None) -> None:
        """Write this tail to a folder.

        Args:
            path: The folder; made if need be.
            weights: A folder that several tails share, in which each weight is stored once, by its content; None to
                leave the form of a folder that this tail was saved in before, as `compile` wants it, and else to have
                everything in `path`. The way from one to the other has to stay as it is.

        Raises:
            ArtifactError: The folder holds something else.
        """
        write_folder(path, self.manifest, self.tables, self.backend.files, weights=weights)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | int | torch.device = "cpu",
        factory: Factory | None = None,
        backend: BackendName = "eager",
        pool: WeightPool | None = None,
    ) -> Tail:
        """Read a tail from a folder; the model's class is not needed where the tail is a program.

        Args:
            path: A folder that `save` wrote, or the one around ``head`` and ``tail``.
            device: Where to run it, such as ``"cuda"``.
            factory: For a tail that runs the model itself: ``"package.module:function"`` that makes the model, or the
                function. Its code runs here, so it is never taken from the folder: its weights are compared, its code
                cannot be. A tail that is a program does not use it, which the log says.
            backend: The runtime, as for `compile`. The folder's engine is used where it was made from this program, for
                this machine and with these versions; else the program is compiled anew, and the log says why.
            pool: Weights in memory that this tail shares with others loaded with it, where it runs in PyTorch.

        Returns:
            The tail.

        Raises:
            ArtifactError: The folder is damaged, foreign or of another format, or `factory` makes another model.
            BackendError: There is no such device or backend here, an engine's bytes are not those that the manifest
                lists, or the tail needs a factory and none was given.
        """
        if pool is not None and not isinstance(pool, WeightPool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BackendError(f"pool is a {type(pool).__name__}; expected a compoff.WeightPool")
        folder = read_folder(find_part(path, "tail"), "tail")
        if not folder.manifest.factory:
            if factory is not None:
                _log.warning("the tail at '%s' is a program and needs no factory; %s is not used", folder.path, factory)
            return cls(folder.manifest, folder.tables, *load_backend(folder, backend, device, pool))
        choice = _uncompiled(folder.manifest, backend, device)
        module = ModuleBackend.load(folder, factory, choice.device)
        if isinstance(factory, str) and factory != folder.manifest.factory:
            _log.warning(
                "the tail at '%s' was exported and tried with the factory '%s', and '%s' is loaded: its weights are "
                "compared, its code is not",
                folder.path,
                folder.manifest.factory,
                factory,
            )
        return cls(folder.manifest, folder.tables, module, choice)


def _uncompiled(manifest: Manifest, backend: str, device: str | int | torch.device) -> Choice:
    """What a tail that runs the user's own model runs in: PyTorch, and nothing else."""
    if backend not in ("eager", "auto"):
        raise BackendError(
            f"the tail of {manifest.model} runs the model itself, so there is no program to compile for '{backend}'; "
            "use backend='eager'"
        )
    return Choice("eager", "it runs the model itself, which cannot be compiled", check_device(device))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor that a model returned, as the wire takes it."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES or tensor.layout is not torch.strided:
        raise BackendError(
            f"the model returned {name}, {tensor.layout}, which numpy and the wire do not know; expected "
            f"{', '.join(DTYPES)}: convert it in the model"
        )
    return tensor.detach().cpu().numpy()
