"""wrap() and load(): the doors to `Wrapped`. Everything is checked before the model is touched.

Knows the order of the checks; what wrapping means is in `wrapped`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compoff.checkpoint import read_bottlenecks
from compoff.checks import check_whole
from compoff.codec import Geometry
from compoff.codec_options import CodecOptions, Sizes
from compoff.cutting.inputs import ExampleInputs, example_call
from compoff.cutting.sites import Site, Skips, check_skips, locate
from compoff.errors import ArtifactError, FeatureError, SplitError
from compoff.mounting import build_bottlenecks, device_of, key_of, refuse_wrapped, sizes_of
from compoff.wrapped import Wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from compoff.codec import Bottleneck, CodecFactory, CodecName

__all__ = ["CodecOptions", "Wrapped", "load", "wrap"]


_SMALL = 1000  # numbers in what older files leave out
_OLDEST: dict[str, Any] = {"codec": "deepcod"}  # what the first files do not say


def wrap(
    model: nn.Module,
    split_points: str | Sequence[str],
    *,
    example_input: Any = None,
    skips: Skips = "encode",
    strict: bool = True,
    # the codec
    codec: CodecName | None = None,
    channels: int | None = None,
    num_centers: int | None = None,
    stride: int | None = None,
    encoder: CodecFactory | None = None,
    decoder: CodecFactory | None = None,
) -> Wrapped:
    """Put a learned encoder/decoder pair at block starts of a trained model.

    The model gets a hook at each split point and is frozen (eval mode, no gradients); its parameters and buffers are
    not touched, and `Wrapped.unwrap` takes everything out again.

    Args:
        model: The trained model.
        split_points: Module paths such as ``["layer1", "layer2"]``: the model is cut where the tensor enters that
            module; ``"pool#1"`` is the second call of a module that runs more than once. ``"input"`` cuts before the
            model. ``"auto"`` chooses up to four that span the network.
        example_input: One batch to learn shapes from: a tensor, a tuple of positional inputs, a dict of keyword inputs,
            or ``(tuple, dict)`` of both; what `fit` is given must hold the same inputs. The first axis of the model's
            first tensor is the batch, and so is that of every other tensor that is as long: where one is the same for
            all samples, give several samples, in another number than it is long. Without an example shapes are learnt
            from the first batch that `fit` or the model itself sees, and what crosses at the split points is checked
            only then. The bottlenecks' first weights are drawn where they are made: here, from PyTorch's random numbers
            as they stand, or in `fit` and `calibrate`, by their `seed`.
        skips: What happens to further floating-point tensors that cross, such as those of skip connections:
            ``"encode"`` gives each a bottleneck of its own, fitted together; ``"send"`` sends them as they are;
            ``"forbid"`` refuses the split point. Masks, token ids and sizes always cross as they are, packed.
        strict: Whether the layers behind a split point compute exactly what they did. False lets `fit` train an adapter
            of a few kB beside each bottleneck: a scale and a shift for each channel of those layers, which only what
            comes out of the bottleneck goes through; the model itself and its other split points never do.
        codec: ``"transform"``, which needs the fewest bytes and serves every rate; or ``"deepcod"``, the paper's. None
            for ``"transform"``, or where you bring an `encoder` for ``"deepcod"``, whose place that takes.
        channels: Channels of the latent at every split point; None for 8, or a sixteenth of a flat feature
            (``"deepcod"``), or for most of what a tile holds, as far as the device's work allows (``"transform"``);
            those that no quality sends are not exported. `fit` warns where they are too few for a model.
        num_centers: Number of quantization levels: 2 to 256, None for 8 (``"deepcod"``); odd from 43, None for 255
            (``"transform"``).
        stride: Side of the tile that becomes one latent position, in elements; None for 4 (``"deepcod"``), or for the
            widest up to 8, of a sequence 64, whose directions are found in seconds (``"transform"``).
        encoder: Your own encoder: a function from ``(feature shape, latent shape)`` to a module; None for ours.
        decoder: Your own decoder: a function from ``(latent shape, feature shape)`` to a module; None for ours.

    Returns:
        The wrapped model.

    Shapes:
        At each split point ``(batch, channels, height, width)``, ``(batch, channels, time)`` or ``(batch, features)``;
        channels may also come last, time first, and tokens of an image are seen as their map.

    Raises:
        SplitError: A split point names no module, or cannot be used; nothing has been changed then.
        FeatureError: A size, or an own module's output shape, does not fit, or a feature is too wide for the codec;
            nothing has been changed then.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))
        >>> compoff.wrap(net, ["input", "1"], example_input=torch.zeros(2, 3, 16, 16)).split_points
        ('input', '1')

    Source: DeepCOD (SenSys 2020), Sec. 3.2.
    """
    paths = _paths(split_points)
    chosen: CodecName = codec or ("deepcod" if encoder else "transform")
    options = CodecOptions(channels, num_centers, stride, encoder, decoder, chosen, strict)
    check_skips(skips)
    refuse_wrapped(model)
    if example_input is None:
        return Wrapped(model, paths, options, skips)
    args, keywords = example_call(example_input)
    sites = locate(model, paths, args, keywords, skips=skips)
    made = build_bottlenecks(options, sites)
    return _wrapped(model, options, skips, sites, made, ExampleInputs.of_call(model, args, keywords))


def _paths(split_points: str | Sequence[str]) -> list[str]:
    if isinstance(split_points, str):
        return [split_points]
    if isinstance(split_points, (bytes, bytearray)):  # a sequence, of numbers
        raise SplitError(f"split_points is {split_points!r:.80}; expected text, such as 'layer1'")
    try:
        return list(split_points)
    except TypeError:
        raise SplitError(
            f'split_points is {split_points!r:.80}; expected module paths such as ["layer1", "layer2"]'
        ) from None


def load(path: str | Path, model: nn.Module, *, example_input: Any = None) -> Wrapped:
    """Wrap a model with bottlenecks that were fitted for it before.

    Args:
        path: A file that `Wrapped.save` wrote.
        model: The model, with the weights that they were fitted for.
        example_input: A batch of inputs of another size than they were fitted with, as `wrap` takes it; None for that
            size. Bytes and agreement at another size are not known then: `finish` measures them, and counts the tables
            anew, which the fit counted at its own size.

    Returns:
        The wrapped model.

    Raises:
        ArtifactError: The file is damaged or foreign, or was fitted for other weights; the model is unchanged then.
        FeatureError: With inputs as `example_input` tiles are not of the size that was fitted, since an axis is shorter
            than one; or the model refuses it; the model is unchanged then.
        SplitError: With inputs as `example_input` the model cannot be cut there; it is unchanged then.

    Examples:
        >>> import tempfile, torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
        >>> x = torch.randn(2, 3, 18, 18)
        >>> model = compoff.wrap(net, "1", example_input=x)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/fitted.safetensors")
        ...     again = compoff.load(f"{folder}/fitted.safetensors", model.unwrap())
        ...     larger = compoff.load(
        ...         f"{folder}/fitted.safetensors", again.unwrap(), example_input=torch.zeros(2, 3, 34, 42)
        ...     )
        >>> larger.bottleneck("1").geometry.shape
        (8, 32, 40)
    """
    refuse_wrapped(model)
    description, tensors, base = read_bottlenecks(path, model)
    try:
        options, shapes = CodecOptions(**_OLDEST | description["options"]), _shapes(description["shapes"])
        skips, reports = check_skips(description.get("skips", "forbid")), _reports(description["reports"])
        sizes, where = _sizes(options, shapes, description), device_of(model)
        example = ExampleInputs.of_description(description).map(lambda tensor: tensor.to(where))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"'{path}': its description does not fit its tensors ({error}); save again") from error
    sites = _same_sites(path, model, shapes, example, skips)
    if example_input is not None:
        sizes = sizes or sizes_of(build_bottlenecks(options, sites, "meta"))
        args, keywords = example_call(example_input)
        fitted, sites = sites, locate(model, list(shapes), args, keywords, skips=skips)
        _require_tiles(fitted, sites, sizes)
        example = ExampleInputs.of_call(model, args, keywords)
    try:
        if sizes is None and options.channels is None:
            sizes = _held(options, sites, tensors)
        if sizes or any(size is not None for size in (options.channels, options.num_centers, options.stride)):
            # Sizes of the file's own, which need not be those of its tensors.
            _require_sizes(_stacked(build_bottlenecks(options, sites, "meta", sizes), tensors), tensors)
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, and thrown away
            made = build_bottlenecks(options, sites, sizes=sizes)
        _fill(made, tensors, reports)
    except (RuntimeError, TypeError, ValueError, LookupError, MemoryError) as error:
        raise ArtifactError(f"'{path}': its description does not fit its tensors ({error}); save again") from error
    wrapped = _wrapped(model, options, skips, sites, made, example)
    for split in (one for one in sites if one in reports and example_input is None):
        wrapped.note_figures(split, reports[split], base)
    return wrapped


def _same_sites(
    path: str | Path, model: nn.Module, shapes: dict[str, list[list[int]]], example: ExampleInputs, skips: Skips
) -> dict[str, Site]:
    """The sites of a file, with features of the shapes that it was fitted for."""
    try:
        sites = locate(model, list(shapes), example.args, example.keywords, skips=skips)
    except (SplitError, FeatureError, RuntimeError, MemoryError) as error:
        raise ArtifactError(f"'{path}': does not fit this {type(model).__name__}: {error}") from error
    for split, site in sites.items():
        found = [list(feature.shape) for feature in site.features]
        if found != shapes[split]:
            raise ArtifactError(
                f"'{path}': shapes say {shapes[split]} at '{split}', but this {type(model).__name__} has {found} "
                "there; the bottlenecks were fitted for another model"
            )
    return sites


def _require_tiles(fitted: dict[str, Site], sites: dict[str, Site], sizes: dict[str, list[Sizes]]) -> None:
    """Refuse inputs of a size at which tiles, and so the weights, are not those that were fitted."""
    for split, site in sites.items():
        if len(site.features) != len(sizes[split]):
            raise FeatureError(
                f"with this example_input {len(site.features)} tensors cross at '{split}', and {len(sizes[split])} "
                "were fitted; give inputs that take the same way through the model"
            )
        for before, now, one in zip(fitted[split].features, site.features, sizes[split], strict=True):
            tiles = [Geometry(feature.packed_shape, one.stride).tile for feature in (before, now)]
            if tiles[0] != tiles[1]:
                was, is_now = (" × ".join(map(str, tile)) for tile in tiles)
                raise FeatureError(
                    f"with this example_input a tile at '{split}' is {is_now} elements, and one of {was} was fitted; "
                    "give inputs at which it is the same, or fit a model that is wrapped for these"
                )


def _fill(made: dict[str, list[Bottleneck]], tensors: dict[str, Tensor], reports: dict[str, dict[str, Any]]) -> None:
    """Give bottlenecks what a file holds of them."""
    _stacked(made, tensors).load_state_dict(tensors)
    for split, (first, *_) in made.items():
        chosen = reports.get(split, {}).get("quality")
        if chosen is not None and f"{key_of(split)}.quality" not in tensors:  # in older files' reports only
            first.choose(chosen)


def _stacked(made: dict[str, list[Bottleneck]], tensors: dict[str, Tensor]) -> nn.ModuleDict:
    """Bottlenecks as one module, without the adapters that were taken off."""
    for split, (first, *_) in made.items():
        if not any(name.startswith(f"{key_of(split)}.adapter.") for name in tensors):
            first.adapter = None
    return nn.ModuleDict({key_of(split, index): one for split in made for index, one in enumerate(made[split])})


def _require_sizes(planned: nn.ModuleDict, tensors: dict[str, Tensor]) -> None:
    """Refuse bottlenecks whose weights the file does not have, before there is memory for them."""
    for name, weight in planned.state_dict().items():
        found = tensors.get(name)
        large = max(weight.numel(), 0 if found is None else found.numel()) > _SMALL  # a ladder may be of any length
        if large and (found is None or found.shape != weight.shape):
            told = "none" if found is None else tuple(found.shape)
            raise FeatureError(f"'{name}' is to be {tuple(weight.shape)}, the file holds {told}")


def _sizes(options: CodecOptions, splits: Iterable[str], description: dict[str, Any]) -> dict[str, list[Sizes]] | None:
    """Sizes that the options would not choose at the size of the file's inputs, since another size was fitted."""
    given: dict[str, list[list[Any]]] | None = description.get("sizes")
    if given is None:
        return None
    found = {split: [Sizes(*one) for one in given[split]] for split in splits}
    for one in (one for ours in found.values() for one in ours):
        replace(options, **one._asdict())  # refuses what is no size
    return found


def _held(options: CodecOptions, sites: dict[str, Site], tensors: dict[str, Tensor]) -> dict[str, list[Sizes]] | None:
    """Sizes of the file's tensors, where what the options leave open was chosen otherwise when it was saved."""
    chosen = sizes_of(build_bottlenecks(options, sites, "meta"))
    found = {
        split: [
            one._replace(channels=len(tensors.get(f"{key_of(split, index)}.quantizer.offset", range(one.channels))))
            for index, one in enumerate(ours)
        ]
        for split, ours in chosen.items()
    }
    return None if found == chosen else found


def _shapes(described: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Shapes of the features at each split point; the first files had one feature each, and its shape alone."""
    return {
        split: [list(one) for one in shapes] if isinstance(shapes[0], list) else [list(shapes)]
        for split, shapes in described.items()
    }


def _reports(described: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for report in described.values():
        check_whole("a report's quality", report.get("quality"), or_none=True)
    return described


def _wrapped(
    model: nn.Module,
    options: CodecOptions,
    skips: Skips,
    sites: dict[str, Site],
    made: dict[str, list[Bottleneck]],
    example: ExampleInputs,
) -> Wrapped:
    """Wrap where everything has been checked."""
    wrapped = Wrapped(model, list(sites), options, skips)
    try:
        wrapped.install(sites, made, example)
    except BaseException:  # no memory on the model's device, say: nobody else has what could be unwrapped
        wrapped.unwrap()
        raise
    return wrapped
