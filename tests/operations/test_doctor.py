"""What works here, and what of it is said where a package is not there, does not import, or is of the wrong version."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from rich.console import Console

from compoff import cli
from compoff.coding import range_constriction
from compoff.edge.backends.onnx import OnnxBackend
from compoff.operations.doctor import Finding, as_json, examine, show

if TYPE_CHECKING:
    from collections.abc import Callable


def found() -> dict[tuple[str, str], Finding]:
    return {(one.part, one.name): one for one in examine()}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Takes modules away, and packages of the same names."""

    def take(*names: str) -> None:
        find, version = importlib.util.find_spec, importlib.metadata.version

        def version_of(name: str) -> str:
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else find(name, *rest)
        )
        monkeypatch.setattr(importlib.metadata, "version", version_of)

    return take


def test_what_the_tests_need_works_here() -> None:
    told = found()
    for at in [("head", "torch"), ("head", "onnx"), ("tail", "eager"), ("tail", "inductor"), ("tail", "onnx")]:
        assert told[at].state == "works"
    assert told["machine", "torch"].told.startswith(f"torch {torch.__version__}, ")
    assert told["extra", "serve"].state == "works"
    assert {"pydantic", "prometheus-client", "typer"} <= {
        part.split()[0] for part in told["extra", "serve"].told.split(", ")
    }
    assert not {name for part, name in told if part == "extra"} & {"bench", "docs", "test", "zoo"}
    assert not [one for one in told.values() if one.state == "wrong"]


def test_what_is_not_here_is_missing_and_how_to_get_it_is_said(without: Callable[..., None]) -> None:
    without("onnxruntime", "executorch", "typer")
    told = found()
    assert told["head", "onnx"] == Finding(
        "head", "onnx", "missing", 'onnxruntime is not installed: pip install "compoff[onnx]"'
    )
    assert told["tail", "onnx"].state == told["head", "executorch"].state == "missing"
    assert told["extra", "onnx"].told.startswith("lacks onnxruntime>=")
    assert "typer>=" in told["extra", "demo"].told  # through the extra cli


def test_a_device_without_torch_is_told_of_its_head(without: Callable[..., None]) -> None:
    without("torch")
    told = found()
    assert told["machine", "torch"].state == told["head", "torch"].state == told["tail", "eager"].state == "missing"
    assert ("tail", "inductor") not in told
    assert told["head", "onnx"].state == "works"


def test_a_package_that_does_not_import_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def broken(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    assert found()["head", "onnx"] == Finding(
        "head",
        "onnx",
        "wrong",
        "onnxruntime is installed and does not import: ImportError: libcudart.so.13: cannot open shared object file",
    )


def test_a_version_that_compoff_does_not_take_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "12.0" if name == "rich" else version(name))
    told = found()
    assert told["extra", "cli"].state == told["extra", "serve"].state == "wrong"
    assert "and 12.0 is installed" in told["extra", "cli"].told
    assert told["extra", "tls"].state == "works"


def test_the_slow_coder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found()["coder", "range"].told == "constriction"
    monkeypatch.setattr(range_constriction, "find", lambda: None)
    assert found()["coder", "range"].told.startswith("pure Python: the same bytes")


def test_no_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert found()["tail", "inductor"].told.endswith("no no-such-compiler to compile with")


def test_a_clone_that_is_not_installed_has_no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", unknown)
    [extras] = [one for one in examine() if one.part == "extra"]
    assert extras.state == "missing"
    assert "not installed as a package" in extras.told


def test_onnxruntime_may_come_in_a_package_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)  # as where only onnxruntime-gpu is installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert OnnxBackend.missing() == ""


def test_the_command_prints_a_table_or_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Finding("head", "onnx", "works", "onnxruntime 1.32")
    stream = io.StringIO()
    show([one], Console(file=stream, width=100))
    assert "onnxruntime 1.32" in stream.getvalue()
    cli.doctor(as_json=True)
    assert json.loads(capsys.readouterr().out) == as_json(examine())
    monkeypatch.setattr("compoff.operations.doctor.examine", lambda: [Finding("head", "onnx", "wrong", "broken")])
    with pytest.raises(cli.typer.Exit) as stopped:
        cli.doctor()
    assert stopped.value.exit_code == 1
    assert "WRONG" in capsys.readouterr().out
