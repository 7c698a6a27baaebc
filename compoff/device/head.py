"""Head: what runs on the device. Inputs to a payload of a few bytes.

Checks what it is given, runs the program of its runtime, codes the symbols. Knows no network connection.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.artifact import read_folder, write_folder
from compoff.checks import check_whole
from compoff.device.c_header import c_header
from compoff.device.inputs import Inputs
from compoff.device.limits import best_within
from compoff.device.runners.choice import load_runner, programs, require_torch
from compoff.device.samples import first_samples
from compoff.errors import FeatureError
from compoff.parts import find_part
from compoff.pickling import Unpickled

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from compoff.coding import Coding, Payload, SymbolTables
    from compoff.device.compiling import CompiledRuntime, Precision
    from compoff.device.fallback import OnFailure
    from compoff.device.local import LocalModel
    from compoff.device.remote import Remote
    from compoff.device.runners.choice import Runtime
    from compoff.device.runners.runner import Runner
    from compoff.manifest import Manifest
    from compoff.partition.decide import Goal
    from compoff.wire.replies import Reply
    from compoff.wire.tls import TLS

__all__ = ["Head"]


class Head(Unpickled):
    """The part of a model that runs on the device, up to the bytes that leave it.

    Made by `compoff.export` or `Head.load`.

    Args:
        manifest: What this head is.
        tables: The coder's tables, one a code.
        runner: The runtime that holds the program.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> x = torch.randn(2, 3, 16, 16)
        >>> model = compoff.wrap(net, "input", example_input=x)
        >>> head, tail = compoff.export(model, "input")
        >>> payload = head(x)
        >>> tail(payload).shape
        torch.Size([2, 5])

    Source: DeepCOD (SenSys 2020), Sec. 3, Fig. 2 (left).
    """

    _elsewhere = "save it, and call compoff.Head.load(folder) there"

    def __init__(self, manifest: Manifest, tables: Sequence[SymbolTables], runner: Runner) -> None:
        self.manifest = manifest
        self.tables = tuple(tables)
        self.runner = runner
        self.payload_format = manifest.payload_format(tables)
        self._inputs = Inputs(manifest, lambda value: self.runner.to_numpy(value))

    @property
    def split(self) -> str:
        """The split point."""
        return self.manifest.split

    @property
    def artifact_id(self) -> bytes:
        """The 32 bytes that this head and its tail share, and no others."""
        return self.manifest.identity

    def __repr__(self) -> str:
        return f"Head({self.manifest.model} at '{self.split}', id {self.manifest.artifact_id[:8]})"

    def __call__(
        self,
        *inputs: Any,
        quality: int | None = None,
        max_bytes: int | None = None,
        coding: Coding | None = None,
        **keywords: Any,
    ) -> Payload:
        """Turn inputs into the bytes to send.

        Args:
            *inputs: What the model takes, as it takes it: tensors of the runtime, or numpy arrays, alone or in tuples,
                lists and dicts. Flags and numbers became constants at the export: they may be left out, but not
                changed. The tensors alone, in the model's order, do as well where the model, called with them, would
                take none for another of its parameters.
            quality: Index of the quality, from 0, the fewest bytes; None for the default that the fit chose.
            max_bytes: Most bytes that the payload may have: the best quality up to `quality` that fits is sent, and of
                the lowest only what fits, whole channels or, under context models, whole groups of them. A payload that
                is Huffman coded, or holds more than one coded feature, cannot be cut:
                ``payload_format.max_bytes(batch, 0)`` bytes are enough for any input.
            coding: ``"range"`` (the shortest, but for an odd payload), ``"static"`` (without contexts: quicker on both
                sides), ``"huffman"`` (the paper's) or ``"raw"``; None, as reports and plans have it, for the first.
            **keywords: What the model takes by name; a parameter called as one of the above is given by position.

        Returns:
            The payload; ``bytes(payload)`` is what travels.

        Raises:
            FeatureError: The model was not called so at the export, an input has another shape or dtype, an input or
                what becomes symbols is not finite, the batch is empty, there is no such quality, not one channel fits
                into `max_bytes`, or, where a payload cannot be cut, not even the lowest quality does, or
                one of the two is no whole number.
        """
        return self.coded(inputs, keywords, quality, max_bytes, ("range" if coding is None else coding,))[0]

    def coded(
        self, inputs: tuple[Any, ...], keywords: dict[str, Any], quality: Any, max_bytes: Any, codings: Sequence[Coding]
    ) -> tuple[Payload, Coding]:
        """A call, and how its payload is coded; what a remote asks where its goal chose the coding.

        Args:
            inputs: What is given by position.
            keywords: What is given by name.
            quality: As for a call.
            max_bytes: As for a call.
            codings: The coding; or two, of which the second takes the first's place before `quality` is lowered.

        Returns:
            The payload, and its coding.

        Raises:
            FeatureError: As for a call.
        """
        arrays, best = self._checked(inputs, keywords, quality, max_bytes, codings[0])
        parts = self._run(arrays, best)  # lower qualities send no other channels
        encode = partial(self._payload, parts)
        if max_bytes is None:
            return encode(best, codings[0]), codings[0]
        return best_within(self.payload_format, encode, best, int(max_bytes), codings)

    def check(
        self,
        *inputs: Any,
        quality: int | None = None,
        max_bytes: int | None = None,
        coding: Coding | None = None,
        **keywords: Any,
    ) -> None:
        """Refuse what a call would refuse before it computes anything; what a remote asks before a local answer.

        Args:
            *inputs: As for a call.
            quality: As for a call.
            max_bytes: As for a call.
            coding: As for a call.
            **keywords: As for a call.

        Raises:
            FeatureError: As for a call.
        """
        self._checked(inputs, keywords, quality, max_bytes, "range" if coding is None else coding)

    def _checked(
        self, inputs: tuple[Any, ...], keywords: dict[str, Any], quality: Any, max_bytes: Any, coding: Coding
    ) -> tuple[list[NDArray[Any]], int]:
        """The inputs as arrays, and the best quality that may be sent."""
        check_whole("quality", quality, or_none=True)
        check_whole("max_bytes", max_bytes, or_none=True)
        best = self.payload_format.check_choice(self.quality if quality is None else quality, coding)
        return self._inputs.arrays(inputs, keywords), best

    @property
    def quality(self) -> int:
        """Index of the quality that is sent by default."""
        chosen = self.manifest.quality
        return self.payload_format.num_qualities - 1 if chosen < 0 else chosen

    def _payload(self, parts: Sequence[NDArray[Any]], quality: int, coding: Coding) -> Payload:
        """Code what the program gave at one quality."""
        sent, count = self._sent(parts, quality), len(self.payload_format.codes)
        return self.payload_format.encode(sent[:count], sent[count:], quality=quality, coding=coding)

    def _sent(self, parts: Sequence[NDArray[Any]], quality: int) -> list[NDArray[Any]]:
        """What the program gave, as it is at one quality."""
        codes = self.payload_format.codes
        symbols = [code.sent(part, quality) for part, code in zip(parts, codes, strict=False)]
        return [*symbols, *parts[len(codes) : self._crossing]]

    @property
    def _crossing(self) -> int:
        """Number of tensors that cross the cut."""
        return len(self.manifest.codes) + len(self.manifest.sides)

    def _run(self, arrays: list[NDArray[Any]], quality: int | None = None) -> list[NDArray[Any]]:
        """What crosses the cut, if there are symbols for it."""
        try:
            parts = self.runner.run(arrays, quality)
        except IndexError as error:
            raise FeatureError(
                f"a whole number in the inputs stands for nothing that the model has ({error}); look for one that is "
                "negative, or beyond the vocabulary"
            ) from error
        for finite in parts[self._crossing :]:  # programs of older exports, and most in integers, say nothing of it
            samples = finite.tolist()
            if not all(samples):
                # In integers the program only knows that it is one of them.
                which = f"sample {samples.index(False)} of this batch" if any(samples) else "a sample of this batch"
                # The nearest center of NaN is some center: the edge would answer, plausibly and wrongly.
                raise FeatureError(
                    f"{which} is finite, but becomes NaN or infinity on its way to "
                    f"'{self.split}', which no symbol stands for; look for a number far out of the usual range, a mask "
                    "that hides everything or an overflow in half precision, and at what the model itself gives for it"
                )
        return parts[: self._crossing]

    def symbols(self, *inputs: Any, **keywords: Any) -> tuple[NDArray[np.uint8], ...]:
        """Turn inputs into symbols, uncoded.

        Args:
            *inputs: As for a call.
            **keywords: As for a call.

        Returns:
            The symbols of each code, of all channels and at the finest step, whatever quality is sent: what a payload
            holds of them is coarser, and may be fewer channels.

        Shapes:
            Each ``(batch, channels, *space)``.

        Raises:
            FeatureError: As for a call.
        """
        parts = self._run(self._inputs.arrays(inputs, keywords))
        return tuple(part.astype(np.uint8, copy=False) for part in parts[: len(self.manifest.codes)])

    def save(self, path: str | Path, *, torch: bool = True) -> None:
        """Write this head to a folder.

        Args:
            path: The folder; made if need be.
            torch: Whether to keep PyTorch's program beside that of another runtime; a device without it needs half as
                many bytes, and the head cannot be compiled again there.

        Raises:
            ArtifactError: The folder holds something else.
            BackendError: Without PyTorch's program there is none.
        """
        write_folder(path, self.manifest, self.tables, programs(self.runner, torch=torch))

    @classmethod
    def load(cls, path: str | Path, *, runtime: Runtime | None = None, threads: int | None = None) -> Head:
        """Read a head from a folder; the model's class is not needed, nor is PyTorch where the head was compiled.

        Args:
            path: A folder that `save` wrote, or the one around ``head`` and ``tail``.
            runtime: ``"torch"``, ``"onnx"`` or ``"executorch"``; None for what the head ran with when it was saved or,
                where that is not installed, another whose program the folder has.
            threads: Threads that onnxruntime works with; None for one a core.

        Returns:
            The head.

        Raises:
            ArtifactError: The folder is damaged, foreign or of another format.
            BackendError: No runtime for its programs is installed, or its program is damaged or another head's.
        """
        folder = read_folder(find_part(path, "head"), "head")
        return cls(folder.manifest, folder.tables, load_runner(folder, runtime, threads))

    def compile(
        self,
        runtime: CompiledRuntime,
        *,
        precision: Precision = "fp32",
        batches: Iterable[Any] | None = None,
        least_agreement: float = 0.8,
        threads: int | None = None,
    ) -> Head:
        """Make this head run in another runtime, faster and without PyTorch. Needs PyTorch once, here.

        The program is translated and compared with PyTorch's; both are saved. The payloads are the same, but where a
        value lies so near the middle between two centers that rounding decides; ``manifest.report`` says how often.

        Args:
            runtime: ``"onnx"``: onnxruntime, on the CPU. ``"executorch"``: a ``.pte`` with XNNPACK, for apps on phones.
            precision: ``"fp32"``, or ``"int8"`` (onnx only): faster again, at the price of some symbols.
            batches: Inputs as `fit` takes them, for the comparison; int8 needs them for its calibration. The first 512
                samples are used. None for made-up ones: noise, and ones and zeros for whole numbers and masks.
            least_agreement: Share of the symbols that int8 has to leave as they are, from 0 to 1.
            threads: Threads that onnxruntime works with; None for one a core.

        Returns:
            A new head of the same export.

        Raises:
            BackendError: A package is missing, the program cannot be translated or quantized, the result does not agree
                with it, int8 was given no batches, or the model takes no inputs that are made up.
            FeatureError: A batch is not what the model takes.

        Examples:
            >>> import torch, compoff
            >>> layer, rest = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(2048, 5)
            >>> net = torch.nn.Sequential(layer, torch.nn.Flatten(), rest)
            >>> model = compoff.wrap(net, "1", example_input=torch.zeros(2, 3, 16, 16))
            >>> head, tail = compoff.export(model, "1")
            >>> quick, x = head.compile("onnx"), torch.rand(1, 3, 16, 16)
            >>> quick(x) == head(x)
            True
        """
        require_torch()
        from compoff.device.compiling import compiled_head  # only here, since it imports torch

        manifest, runner = compiled_head(
            self.manifest,
            self.runner.files,
            first_samples(batches, self._inputs.pieces, self._inputs.names),
            lambda parts: self._sent(parts, self.quality),
            runtime=runtime,
            precision=precision,
            least_agreement=least_agreement,
            threads=threads,
        )
        return Head(manifest, self.tables, runner)

    def c_header(self, quality: int | None = None) -> str:
        """Write what a device in C has to know to make this export's payloads; ``examples/c`` does it.

        Args:
            quality: Index of the quality that the device will send; None for the default.

        Returns:
            The text of a C99 header.

        Raises:
            BackendError: More crosses than one coded feature.
            FeatureError: There is no such quality.
        """
        return c_header(self.manifest, self.payload_format, self.quality if quality is None else quality)

    def connect(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: TLS | ssl.SSLContext | None = None,
        insecure: bool = False,
        reply: Reply = "full",
        goal: Goal | None = None,
        on_failure: OnFailure = "raise",
        local: LocalModel | None = None,
        timeout: float = 10.0,
    ) -> Remote:
        """Open a connection to the edge server that holds this head's tail; `compoff.connect` has every option.

        Args:
            address: ``"host:port"``.
            token: The server's token, if it asks for one.
            tls: Certificates, or a context of your own; without them another machine is checked against the authorities
                of this system.
            insecure: Whether to connect without encryption.
            reply: What to bring back, as for `compoff.connect`.
            goal: What calls shall keep and take, as for `compoff.connect`.
            on_failure: ``"raise"``, ``"local"`` or ``"hedge"``: what a call does where the edge gives no answer.
            local: The whole model, for the last two: something to call, or the path of its ONNX file.
            timeout: Deadline of the connection and of each call, in seconds.

        Returns:
            The remote; calling it gives what the model would have returned.

        Raises:
            WireError: No connection, a refusal, or a server that holds another export.
        """
        from compoff.device.connecting import connect  # remote builds on Head

        return connect(
            self,
            address,
            token=token,
            tls=tls,
            insecure=insecure,
            reply=reply,
            goal=goal,
            on_failure=on_failure,
            local=local,
            timeout=timeout,
        )
