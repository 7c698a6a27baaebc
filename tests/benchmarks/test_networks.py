"""The benchmarks' networks: shapes and names without data, known accuracies with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from benchmarks.networks import (
    BasicBlock,
    ImageNetResNet,
    data_folder,
    decode_codebooks,
    load_pqf,
    read_imagenet_val,
    resnet18,
    resnet50,
)
from compoff.demo.networks import CifarResNet, DigitsNet, load_cifar_resnet, read_cifar10
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def num_parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# The counts are torchvision's and the CIFAR ResNets' published ones.
@pytest.mark.parametrize(("network", "count"), [(resnet18, 11_689_512), (resnet50, 25_557_032)])
def test_imagenet_resnets_have_the_published_size(network: Callable[[], torch.nn.Module], count: int) -> None:
    assert num_parameters(network()) == count


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (56, 853_018)])
def test_cifar_resnets_have_the_published_size(depth: int, count: int) -> None:
    assert num_parameters(CifarResNet(depth)) == count


def test_imagenet_resnet_names_its_blocks_as_torchvision_does() -> None:
    names = [name for name, _ in resnet50().named_children()]
    assert names == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    assert "layer2.0.downsample.1.weight" in resnet50().state_dict()


def test_imagenet_resnet_shrinks_each_stage() -> None:
    network = ImageNetResNet(BasicBlock, (1, 1, 1, 1), num_classes=7).eval()
    shapes = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert shapes == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4), (2, 512, 2, 2)]


def test_digits_net_is_small_and_scores_ten_digits() -> None:
    network = DigitsNet()
    assert 80_000 < num_parameters(network) < 120_000
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_cifar_shortcut_pads_the_missing_channels_with_zeros() -> None:
    shortcut = CifarResNet(20).layer2[0].shortcut
    features = torch.rand(1, 16, 4, 4)
    widened = shortcut(features)
    assert widened.shape == (1, 32, 2, 2)
    assert torch.equal(widened[:, 8:24], features[:, :, ::2, ::2])
    assert widened[:, :8].abs().sum() == widened[:, 24:].abs().sum() == 0


def test_cifar_depth_must_fit() -> None:
    with pytest.raises(ValueError, match="depth 21 is not of the form 6n"):
        CifarResNet(21)


def test_codebooks_expand_to_the_weights_they_stand_for() -> None:
    codebook = torch.arange(12, dtype=torch.float16).view(6, 2)
    stored = {"fc.codebook": codebook, "fc.codes_matrix": torch.tensor([[5, 0], [1, 1]], dtype=torch.int16)}
    weights = decode_codebooks({**stored, "fc.bias": torch.ones(2)}, {"fc.weight": torch.Size((2, 4))})
    assert torch.equal(weights["fc.weight"], torch.tensor([[10.0, 11, 0, 1], [2, 3, 2, 3]]))
    assert set(weights) == {"fc.weight", "fc.bias"}


def test_codes_above_the_signed_range_are_read_as_unsigned() -> None:
    codebook = torch.arange(40_000, dtype=torch.float32).view(40_000, 1)
    codes = torch.from_numpy(np.array([39_999], dtype=np.uint16).view(np.int16))
    weights = decode_codebooks({"a.codebook": codebook, "a.codes_matrix": codes}, {"a.weight": torch.Size((1,))})
    assert weights["a.weight"].tolist() == [39_999]


def test_data_folder_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPOFF_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set COMPOFF_DATA"):
        data_folder()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data_folder(tmp_path / "nowhere")
    monkeypatch.setenv("COMPOFF_DATA", str(tmp_path))
    assert data_folder() == tmp_path


def test_missing_weights_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cifar10_resnet20\.safetensors does not exist"):
        load_cifar_resnet(20, tmp_path)
    with pytest.raises(ArtifactError, match=r"test1000\.npz does not exist"):
        read_cifar10("test", tmp_path)


# 91.5 % and 92.6 % of all 1,000 test images; 91 % and 94 % of these 200.
@pytest.mark.data
@pytest.mark.parametrize(("depth", "bound"), [(20, 0.9), (56, 0.93)])
def test_cifar_weights_reach_their_accuracy(data: Path, depth: int, bound: float) -> None:
    images, classes = (part[:200] for part in read_cifar10("test", data))
    assert images.shape == (200, 3, 32, 32)
    with torch.inference_mode():
        accuracy = (load_cifar_resnet(depth, data)(images).argmax(1) == classes).float().mean()
    assert accuracy > bound


# 74.85 % of all 1,300 images; 74 of these 100.
@pytest.mark.data
def test_pqf_weights_reach_their_accuracy(data: Path) -> None:
    network, right, seen = load_pqf("resnet18", data), 0, 0
    with torch.inference_mode():
        for images, classes in read_imagenet_val(data, limit=100):
            assert images.shape[1:] == (3, 224, 224)
            right += int((network(images).argmax(1) == classes).sum())
            seen += len(classes)
    assert seen == 100
    assert right > 71
