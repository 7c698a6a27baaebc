"""Import torchvision beside a CPU build of torch, where its wheel from PyPI, built for CUDA, cannot load its operators.

The compiled operators (nms, roi_align) are then missing and everything else works. A torchvision that cannot be
imported also breaks timm, transformers, and whatever imports torchmetrics, so this comes before any of them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any

__all__ = ["import_torchvision"]

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def import_torchvision() -> Any:
    """Import torchvision, with its operators declared but missing where they cannot be loaded.

    Returns:
        The module; None where torchvision is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        if "torchvision::nms" not in str(error):
            raise
    _declared()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision")


@functools.cache
def _declared() -> Any:
    """The declarations; cached, because they last as long as the object that made them."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        library.define(name + _SIGNATURE)
    return library
