"""Every architecture of the zoo, in its small instance, wrapped at each of its split points.

Export, reload and the socket are checked on a choice of them in `test_shipping`; on all of them, in full size, by the
benchmark ``python -m benchmarks.architectures``.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.zoo import ARCHITECTURES
from benchmarks.zoo.architecture import Architecture, largest
from benchmarks.zoo.checks import TOLERANCE, mount
from benchmarks.zoo.library_shim import import_torchvision

ASKED_FOR = (
    "ResNet", "MobileNetV2", "MobileNetV3", "MobileNetV4", "EfficientNet", "RegNet", "VGG", "DenseNet", "GoogLeNet",
    "Inception", "ConvNeXt", "ViT-", "Swin", "Hybrid", "U-Net", "FCN", "DeepLab", "YOLO-Fastest", "SSD-like",
    "DeepSpeech-like", "wav2vec 2.0", "Whisper", "BC-ResNet", "BERT", "decoder, cache off", "Tabular MLP",
    "Diffusion U-Net with a time",
)  # fmt: skip


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    import_torchvision()
    found: Architecture = request.param
    if found.library != "own":
        pytest.importorskip(found.library)
    return found


# Libraries that warn about their own future while they are imported or build a model.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_wrapping_changes_nothing_and_gradients_arrive(architecture: Architecture) -> None:
    model = architecture.build(reduced=True)
    for split in architecture.split_points:
        mounted = mount(architecture, split, model, reduced=True)
        assert largest(mounted.expected[0]) > 1e-3, "an output of nothing but zeros would agree with any other"
        assert mounted.teacher_gap() <= TOLERANCE, split  # at batches of two, three and one
        assert mounted.bypass_gap() <= TOLERANCE, split
        assert mounted.gradients_missing() == [], split
        assert mounted.before.changed_values(model) == [], split
        assert mounted.unwrap() == [], split


def test_the_zoo_holds_what_was_asked_for() -> None:
    names = [architecture.name for architecture in ARCHITECTURES]
    assert len(names) == len(set(names)) >= 30
    assert [kind for kind in ASKED_FOR if not any(kind in name for name in names)] == []
    assert all(len(set(architecture.split_points)) >= 2 for architecture in ARCHITECTURES)
    assert {architecture.library for architecture in ARCHITECTURES} >= {"torchvision", "timm", "transformers", "own"}


def test_a_model_is_the_same_each_time() -> None:
    architecture = next(one for one in ARCHITECTURES if one.name == "U-Net")
    before = torch.random.get_rng_state()
    first, second = (architecture.build(reduced=True).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    inputs, again = (architecture.inputs(reduced=True, batch=3, seed=5).args[0] for _ in range(2))
    assert inputs.shape[0] == 3
    assert torch.equal(inputs, again)
    assert torch.equal(torch.random.get_rng_state(), before)
