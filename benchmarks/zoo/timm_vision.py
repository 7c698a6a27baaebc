"""Image classifiers of timm, hybrids of convolution and attention among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.zoo.architecture import Architecture, images
from benchmarks.zoo.library_shim import import_torchvision

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TIMM"]


def _entry(
    name: str, model: str, *split_points: str, full: int = 224, reduced: int = 64, small: dict[str, Any] | None = None
) -> Architecture:
    """A model of timm by its name there, and what its small instance is built with instead."""

    def make(is_reduced: bool) -> nn.Module:
        import_torchvision()
        import timm

        options = {"model_name": model, **({"num_classes": 10, **(small or {})} if is_reduced else {})}
        return timm.create_model(**options)

    return Architecture(name, "timm", make, images(full, reduced), split_points)


def _mixer(reduced: bool) -> nn.Module:
    import_torchvision()
    from timm.models.mlp_mixer import MlpMixer

    if reduced:
        return MlpMixer(num_classes=10, img_size=32, patch_size=8, num_blocks=2, embed_dim=32)
    return MlpMixer(img_size=224, patch_size=16, num_blocks=8, embed_dim=512)


TIMM = (
    _entry(
        "MobileNetV4-Conv-Small",
        "mobilenetv4_conv_small",
        "blocks.1",
        "blocks.3",
        small={"model_name": "mobilenetv4_conv_small_035"},
    ),
    _entry(
        "ConvNeXt V2-Atto",
        "convnextv2_atto",
        "stages.1",
        "stages.3",
        small={"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    ),
    _entry(
        "ViT-Tiny",
        "vit_tiny_patch16_224",
        "blocks.1",
        "norm",
        reduced=32,
        small={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    _entry(
        "Hybrid ViT (ResNet stem)",
        "vit_tiny_r_s16_p8_224",
        "blocks.1",
        "norm",
        small={"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    _entry("MobileViT-XXS", "mobilevit_xxs", "stages.1", "stages.3", small={}),
    _entry(
        "CoAtNet-0",
        "coatnet_0_rw_224",
        "stages.1",
        "stages.2",
        small={"img_size": 64, "embed_dim": (32, 32, 64, 64), "depths": (1, 1, 1, 1)},
    ),
    Architecture("MLP-Mixer-S/16", "timm", _mixer, images(224, 32), ("blocks.1", "norm")),
    _entry(
        "FastViT-T8",
        "fastvit_t8",
        "stages.1",
        "stages.3",
        full=256,
        small={"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32)},
    ),
)
