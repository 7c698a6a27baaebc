"""Heads and tails of a choice of architectures, run where no model library can be imported, and over a socket.

One of each way in which tensors cross: all of them, in full size, are run by ``python -m benchmarks.architectures``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.zoo import named
from benchmarks.zoo.checks import TOLERANCE, Export, mount, run_strangers
from benchmarks.zoo.library_shim import import_torchvision

if TYPE_CHECKING:
    from pathlib import Path

# Libraries that warn about their own future while they are imported or build a model.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.timeout(400),  # the first test makes all exports: 45 s where nothing else runs
]

CUTS = [
    ("ViT-Tiny", "blocks.1"),  # tokens with a class token
    ("U-Net", "middle"),  # four codes
    ("BERT-base, classifier", "bert.encoder.layer.1"),  # keyword inputs, a mask beside the code, a ModelOutput
    ("Diffusion U-Net with a time", "down2"),  # two codes and a time
    ("Two towers, dict of inputs", "picture2"),  # nested inputs, token ids beside the code
    ("SSD-like with NMS", "stages.1"),  # a tail that is no program
]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Export, float, str]]:
    """Exports by architecture, with what the process without libraries made of them."""
    import_torchvision()
    folder = tmp_path_factory.mktemp("exports")
    made: list[Export] = []
    for number, (name, split) in enumerate(CUTS):
        architecture = named(name)
        mounted = mount(architecture, split, architecture.build(reduced=True), reduced=True)
        made.append(mounted.export(folder / str(number)))
        assert mounted.unwrap() == []
    results = run_strangers(made, folder)
    return {
        name: (export, float("nan") if result["error"] else export.stranger_gap(), result["error"])
        for (name, _), export, result in zip(CUTS, made, results, strict=True)
    }


@pytest.mark.parametrize("name", [name for name, _ in CUTS])
def test_head_and_tail_are_the_student(name: str, exports: dict[str, tuple[Export, float, str]]) -> None:
    export, strangers, error = exports[name]
    assert not error
    assert strangers <= TOLERANCE
    assert export.gap() <= TOLERANCE
    assert export.socket_gap() <= TOLERANCE


def test_a_process_that_has_a_library_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stranger.py"
    script.write_text('print(\'{"results": [], "loaded": ["timm"]}\')', encoding="utf-8")
    monkeypatch.setattr("benchmarks.zoo.checks._STRANGER", script)
    with pytest.raises(RuntimeError, match="has loaded timm"):
        run_strangers([], tmp_path)


def test_the_cut_alone_changes_nothing_in_the_two_programs() -> None:
    architecture = named("U-Net")
    mounted = mount(architecture, "middle", architecture.build(reduced=True), reduced=True)
    assert mounted.program_gap() <= TOLERANCE
    assert mounted.unwrap() == []
