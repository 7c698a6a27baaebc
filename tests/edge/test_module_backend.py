"""A tail that runs the model itself, where what lies behind the cut is no program."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compoff
from compoff.artifact import read_folder, write_folder
from compoff.errors import ArtifactError, BackendError, FeatureError, SplitError
from tests.eager_models import make_named_picker, make_picker
from tests.small_networks import assert_close, tiny_decoder, tiny_encoder

ROOT = Path(__file__).parents[2]
FACTORY = "tests.eager_models:make_picker"


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def wrapped_at(split: str, **options: Any) -> compoff.Wrapped:
    net = make_picker()
    return compoff.wrap(
        net, split, example_input=images(), encoder=tiny_encoder, decoder=tiny_decoder, **options
    ).eval()


def student(model: compoff.Wrapped, split: str, x: Tensor) -> Any:
    with model.at(split), torch.no_grad():
        return model(x)


Pair = tuple[compoff.Head, compoff.Tail]


@pytest.fixture(scope="module")
def picker() -> compoff.Wrapped:
    torch.manual_seed(0)
    return wrapped_at("head")


@pytest.fixture(scope="module")
def pair(picker: compoff.Wrapped) -> Pair:
    return compoff.export(picker, "head", tail_factory=FACTORY)


@pytest.fixture(scope="module")
def folder(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picker") / "tail"
    pair[1].save(path)
    return path


def test_without_a_factory_the_error_says_where_and_what_to_do() -> None:
    model = wrapped_at("head")
    with pytest.raises(SplitError) as caught:
        compoff.export(model, "head")
    message = str(caught.value)
    assert "Picker cannot be exported at 'head'" in message
    assert "eager_models.py:" in message
    assert "pass tail_factory='package.module:function'" in message
    assert torch.overrides._get_current_function_mode() is None, "PyTorch's own mode is gone, too"
    assert model.gate("head").replace is None


@pytest.mark.parametrize(
    ("split", "skips"), [("input", "encode"), ("body", "encode"), ("head", "encode"), ("head", "send")]
)
def test_the_answer_is_the_students_whatever_its_length(
    split: str, skips: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = wrapped_at(split, skips=skips)
    with caplog.at_level(logging.WARNING, "compoff.export"):
        head, tail = compoff.export(model, split, tail_factory=FACTORY)
    assert f"it runs the model that {FACTORY} makes" in caplog.text
    head.save(tmp_path / "head")
    tail.save(tmp_path / "tail")
    head, tail = compoff.Head.load(tmp_path), compoff.Tail.load(tmp_path, factory=FACTORY)
    for batch in (1, 2, 5):
        x = images(batch)
        expected = student(model, split, x)
        assert_close(tail(head(x)), expected)
    first, second = images(1), images(3)
    both = tail([head(first), head(second)])
    assert_close(both[0], student(model, split, first))
    assert_close(both[1], student(model, split, second))
    with pytest.raises(FeatureError, match=f"becomes NaN or infinity on its way to '{split}'"):
        head(torch.full((2, 3, 8, 8), 3e38))


def test_over_the_wire_it_is_what_the_model_returns(picker: compoff.Wrapped, pair: Pair) -> None:
    head, tail = pair
    with tail.serve("127.0.0.1:0") as server, head.connect(server.address) as remote:
        for batch in (1, 4):
            x = images(batch)
            assert_close(remote(x), student(picker, "head", x))


def test_it_is_served_by_the_command_in_a_process_of_its_own(picker: compoff.Wrapped, pair: Pair, folder: Path) -> None:
    command = [sys.executable, "-m", "compoff", "serve", str(folder), "--address", "127.0.0.1:0"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    assert refused.returncode == 1
    assert f"load it with factory='{FACTORY}'" in refused.stderr
    with subprocess.Popen([*command, "--factory", FACTORY], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        x = images(3)
        with pair[0].connect(process.stdout.readline().split()[-1]) as remote:
            assert_close(remote(x), student(picker, "head", x))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_a_folder_never_chooses_the_code_that_runs(pair: Pair, folder: Path) -> None:
    head, tail = pair
    with pytest.raises(BackendError, match=f"made by '{FACTORY}'; if you trust that code, load it with factory="):
        compoff.Tail.load(folder)
    x = images()
    assert_close(compoff.Tail.load(folder, factory=make_picker)(head(x)), tail(head(x)))


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("tests.eager_models:make_other_picker", "makes a model whose weights have the fingerprint"),
        ("tests.eager_models:refuse", "makes no model .OSError: the weights are not here"),
        ("tests.eager_models:nothing", "makes no model .AttributeError"),
        ("tests.no_such_module:make", "makes no model .ModuleNotFoundError"),
        ("no colon", "makes no model .ValueError"),
        (lambda: 3, "makes a int; expected a torch.nn.Module"),
    ],
)
def test_a_factory_that_makes_something_else_is_refused(
    factory: Any, reason: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ArtifactError, match=reason):
        compoff.Tail.load(folder, factory=factory)
    assert not caplog.text  # of no model that it was loaded


def test_a_factory_of_another_name_is_named_when_it_is_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    compoff.Tail.load(folder, factory="tests.eager_models:make_stronger_picker")
    assert f"tried with the factory '{FACTORY}', and 'tests.eager_models:make_stronger_picker' is loaded" in caplog.text
    caplog.clear()
    compoff.Tail.load(folder, factory=FACTORY)
    assert not caplog.text


def test_a_factory_whose_model_has_another_number_in_its_code_is_refused(picker: compoff.Wrapped) -> None:
    with pytest.raises(ArtifactError, match="answers otherwise than the one that was wrapped, though its weights"):
        compoff.export(picker, "head", tail_factory="tests.eager_models:make_stronger_picker")


def test_a_prefix_that_cannot_be_exported_is_named_by_its_line() -> None:
    class Early(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = torch.nn.Linear(32, 32), torch.nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.head(y * 2.0 if bool(y.sum() > 0) else y * 3.0)

    model = compoff.wrap(Early(), "head", example_input=torch.randn(2, 32)).eval()
    with pytest.raises(
        SplitError, match=r"what runs before 'head' in Early cannot be exported \(.*test_module_backend.py:\d+\)"
    ):
        compoff.export(model, "head", tail_factory=FACTORY)


def test_a_factory_that_is_not_needed_is_not_used() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 5))
    model = compoff.wrap(net, "1", example_input=torch.randn(2, 32)).eval()
    _, tail = compoff.export(model, "1", tail_factory="tests.eager_models:refuse")
    assert tail.manifest.factory == ""


def test_damaged_places_are_refused(folder: Path, tmp_path: Path) -> None:
    whole = read_folder(folder, "tail")
    for damaged in (b"{", b"[3]", b'[{"tap": {"kind": "output"}, "own": true}]', b'[{"own": true}]'):
        write_folder(tmp_path / "b", whole.manifest, whole.tables, {**whole.files, "places.json": damaged})
        with pytest.raises(ArtifactError, match=r"places.json: is damaged"):
            compoff.Tail.load(tmp_path / "b", factory=FACTORY)


def test_a_model_that_takes_its_inputs_by_name_alone() -> None:
    x = images(3)
    model = compoff.wrap(
        make_named_picker(), "head", example_input={"pictures": x}, encoder=tiny_encoder, decoder=tiny_decoder
    ).eval()
    head, tail = compoff.export(model, "head", tail_factory="tests.eager_models:make_named_picker")
    with torch.no_grad(), model.at("head"):
        assert_close(tail(head(pictures=x)), model(pictures=x))
