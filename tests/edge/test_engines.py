"""Tails in other runtimes: the same answers, and no engine that the folder does not vouch for is ever run."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.artifact import read_folder, write_folder
from compoff.edge.backends import choosing
from compoff.edge.backends.inductor import InductorBackend
from compoff.edge.backends.onnx import OnnxBackend
from compoff.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

Pair = tuple[compoff.Head, compoff.Tail]


def make(seed: int) -> Pair:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = compoff.wrap(net, "2", example_input=torch.zeros(2, 6))
    return compoff.export(model, "2", max_batch=16)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make(0)


@pytest.fixture(scope="module", params=["onnx", "inductor"])
def compiled(pair: Pair, request: pytest.FixtureRequest) -> compoff.Tail:
    return pair[1].compile(request.param)


@pytest.fixture(scope="module")
def stored(compiled: compoff.Tail, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "tail"
    compiled.save(path)
    return path


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stored, tmp_path / "tail")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that were compiled for, from now on; nothing is, really."""
    seen: list[str] = []

    def record(kind: Any) -> Any:
        def compile_(manifest: Any, source: bytes, device: str) -> Any:
            seen.append(kind.__name__)
            raise BackendError(f"{kind.__name__} was compiled on {device}")

        return compile_

    for kind in (OnnxBackend, InductorBackend):
        monkeypatch.setattr(kind, "compile", record(kind))
    return seen


# -- the same answers


def test_answers_as_pytorch_does_at_any_batch(pair: Pair, compiled: compoff.Tail) -> None:
    head, tail = pair
    for batch in (1, 2, 16):
        payload = head(torch.randn(batch, 6))
        torch.testing.assert_close(compiled(payload), tail(payload), rtol=0, atol=1e-5)
    payloads = [head(torch.randn(batch, 6)) for batch in (1, 3)]
    assert [answer.shape[0] for answer in compiled(payloads)] == [1, 3]


def test_says_which_runtime_and_how_close(compiled: compoff.Tail, pair: Pair) -> None:
    choice = compiled.choice
    assert choice.deviation is not None
    assert choice.deviation < 1e-4
    assert repr(compiled).endswith(f", {choice.backend})")
    assert pair[1].choice.backend == "eager"


def test_serves_what_the_head_asks(pair: Pair, compiled: compoff.Tail) -> None:
    head, tail = pair
    x = torch.randn(2, 6)
    with compiled.serve("127.0.0.1:0") as server, head.connect(server.address) as remote:
        torch.testing.assert_close(remote(x), tail(head(x)), rtol=0, atol=1e-5)


def test_what_does_not_agree_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OnnxBackend.run
    monkeypatch.setattr(OnnxBackend, "run", lambda self, parts: [leaf * 1.01 for leaf in run(self, parts)])
    with pytest.raises(BackendError, match=r"'onnx' does not agree with PyTorch: outputs differ by 0\.01"):
        pair[1].compile("onnx")


def test_what_fails_where_it_first_runs_is_passed_over(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: OnnxBackend, parts: Any) -> Any:
        del self, parts
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(choosing, "_BEST", {"cpu": ("onnx",)})
    monkeypatch.setattr(OnnxBackend, "run", fail)
    tail = pair[1].compile("auto")
    assert tail.choice.backend == "eager"
    assert "'onnx' fails where it first runs (RuntimeError: CUDA error: out of memory)" in tail.choice.reason


# -- engines: which are run


@pytest.mark.parametrize("backend", ["own", "auto"])
def test_a_good_engine_is_run_as_it_is(
    pair: Pair, compiled: compoff.Tail, folder: Path, compilations: list[str], backend: Any
) -> None:
    name = compiled.choice.backend
    tail = compoff.Tail.load(folder, backend=name if backend == "own" else backend)
    assert (tail.choice.backend, compilations) == (name, [])
    assert "engine for this machine" in tail.choice.reason
    payload = pair[0](torch.randn(3, 6))
    assert torch.equal(tail(payload), compiled(payload))
    tail.save(folder.parent / "again")
    for path in folder.iterdir():
        assert (folder.parent / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_program_is_always_kept(pair: Pair, folder: Path) -> None:
    tail = compoff.Tail.load(folder)
    assert tail.choice.backend == "eager"
    payload = pair[0](torch.randn(3, 6))
    assert torch.equal(tail(payload), pair[1](payload))


def test_a_folder_keeps_an_engine_of_each_backend(
    pair: Pair, compiled: compoff.Tail, folder: Path, compilations: list[str]
) -> None:
    name, payload = compiled.choice.backend, pair[0](torch.randn(3, 6))
    before = {path.name: path.read_bytes() for path in folder.glob("engine.*")}
    compoff.Tail.load(folder).save(folder)  # in PyTorch: it brings no engine of its own
    part = read_folder(folder, "tail")
    write_folder(
        folder, part.manifest, part.tables, {**part.files, "engine.other.json": b"{}", "engine.other.bin": b"x"}
    )
    assert {path.name: path.read_bytes() for path in folder.glob(f"engine.{name}.*")} == before
    assert read_folder(folder, "tail").engine("engine.other.bin") == b"x"
    tail = compoff.Tail.load(folder, backend=name)
    assert (tail.choice.backend, compilations) == (name, [])
    assert torch.equal(tail(payload), compiled(payload))


def test_engines_of_another_export_do_not_stay(folder: Path) -> None:
    tail = make(1)[1]
    tail.save(folder)
    assert not list(folder.glob("engine.*"))
    assert compoff.Tail.load(folder).artifact_id == tail.artifact_id


def changed(folder: Path, word: str, value: str) -> str:
    """Change what an engine says of itself, with a manifest that vouches for it; the name of its backend."""
    part = read_folder(folder, "tail")
    name = next(name for name in part.engines if name.endswith(".json"))
    engines = {one: part.engine(one) for one in part.engines}
    engines[name] = json.dumps({**json.loads(engines[name]), word: value}).encode()
    write_folder(folder, part.manifest, part.tables, {**part.files, **engines})
    return name.split(".")[1]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("torch", "2.11.0"),
        ("format", "0"),
        ("processor", "another machine"),
        ("system", "Plan9 mips"),
        ("program", "0" * 64),
        ("inputs", "[16, [[9], 'uint8', true]]"),
        ("unknown", "word"),
    ],
)
def test_a_stale_or_foreign_engine_is_compiled_anew_with_a_notice(
    folder: Path, compilations: list[str], caplog: pytest.LogCaptureFixture, word: str, value: str
) -> None:
    name = changed(folder, word, value)
    with caplog.at_level(logging.WARNING, "compoff.engine"), pytest.raises(BackendError, match="was compiled on cpu"):
        compoff.Tail.load(folder, backend=name)  # type: ignore[arg-type]
    assert len(compilations) == 1
    assert f"{word} is {value[:10]}" in caplog.text
    assert f"compoff compile {folder} --backend {name}" in caplog.text


def flipped(folder: Path, name: str, _: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def cut_short(folder: Path, name: str, _: Path) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def missing(folder: Path, name: str, _: Path) -> None:
    (folder / name).unlink()


def swapped(folder: Path, name: str, other: Path) -> None:
    (folder / name).write_bytes((other / name).read_bytes())


@pytest.fixture(scope="module")
def other(compiled: compoff.Tail, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tail with files of the same names."""
    tail = make(1)[1]
    path = tmp_path_factory.mktemp("other") / "tail"
    engine = {f"engine.{compiled.choice.backend}.{end}": b"{}" + b" " * 100 for end in ("json", "bin")}
    write_folder(path, tail.manifest, tail.tables, {**tail.backend.files, **engine})
    return path


@pytest.mark.parametrize("damage", [flipped, cut_short, missing, swapped])
@pytest.mark.parametrize("end", ["json", "bin"])
def test_an_engine_that_the_manifest_does_not_vouch_for_is_refused_and_never_run(
    folder: Path,
    other: Path,
    compiled: compoff.Tail,
    compilations: list[str],
    end: str,
    damage: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = compiled.choice.backend
    kind = {"onnx": OnnxBackend, "inductor": InductorBackend}[name]
    monkeypatch.setattr(kind, "__init__", lambda *_: pytest.fail("it was run"))
    damage(folder, f"engine.{name}.{end}", other)
    for backend in (name, "auto"):
        with pytest.raises(BackendError, match=rf"engine\.{name}\.{end}.*never run.*compoff compile"):
            compoff.Tail.load(folder, backend=backend)  # type: ignore[arg-type]
    assert compilations == []
    assert compoff.Tail.load(folder).choice.backend == "eager"


def test_a_key_that_is_no_key_is_refused(folder: Path, compiled: compoff.Tail) -> None:
    part = read_folder(folder, "tail")
    name = f"engine.{compiled.choice.backend}.json"
    for words in (b"[]", b"not json", b"{" * 100_000, b""):
        engines = {one: part.engine(one) for one in part.engines}
        write_folder(folder.parent / "bad", part.manifest, part.tables, {**part.files, **engines, name: words})
        with pytest.raises(BackendError, match="is not the key of an engine"):
            compoff.Tail.load(folder.parent / "bad", backend=compiled.choice.backend)  # type: ignore[arg-type]


def test_bytes_that_are_no_engine_are_an_error_of_ours(folder: Path, compiled: compoff.Tail) -> None:
    part = read_folder(folder, "tail")
    engines = {one: part.engine(one) if one.endswith("json") else b"no engine" for one in part.engines}
    write_folder(folder, part.manifest, part.tables, {**part.files, **engines})
    with pytest.raises(BackendError, match="cannot load"):
        compoff.Tail.load(folder, backend=compiled.choice.backend)  # type: ignore[arg-type]


# -- which runtime


def test_auto_takes_the_fastest_that_works_and_says_why(
    pair: Pair,
    compilations: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(OnnxBackend, "missing", staticmethod(lambda: "onnx is not installed"))
    with caplog.at_level(logging.WARNING, "compoff.engine"):
        tail = pair[1].compile()
    assert (tail.choice.backend, compilations) == ("eager", ["InductorBackend"])
    for words in ("not onnx, onnx is not installed", "not inductor, InductorBackend was compiled"):
        assert words in tail.choice.reason
    assert "runs in PyTorch" in caplog.text


def test_auto_tries_the_fastest_first(pair: Pair, compilations: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert pair[1].compile("auto").choice.backend == "eager"
    assert compilations == ["OnnxBackend", "InductorBackend"]


@pytest.mark.parametrize("load", [True, False])
def test_unknown_names_and_devices_are_refused(pair: Pair, tmp_path: Path, load: bool) -> None:
    pair[1].save(tmp_path)

    def run(**given: Any) -> Any:
        return compoff.Tail.load(tmp_path, **given) if load else pair[1].compile(**given)

    with pytest.raises(BackendError, match="no backend 'onxx'; choose one of 'eager', 'inductor', 'onnx'"):
        run(backend="onxx")
    with pytest.raises(BackendError, match="cannot run on device 'nonsense'"):
        run(backend="inductor", device="nonsense")
    for backend in ("onnx", "eager"):
        with pytest.raises(BackendError, match=r"cannot run on device 'meta' .it holds no numbers"):
            run(backend=backend, device="meta")
    with pytest.raises(BackendError, match="'onnx' runs on the CPU"):
        OnnxBackend.compile(pair[1].manifest, b"", "cuda")
    assert isinstance(run(backend="onnx", device=torch.device("cpu", 0)).backend, OnnxBackend)


class Hiding(nn.Module):
    """A transformer whose mask says, as PyTorch's own does, what is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=hidden)
        return x[:, 0]


def test_a_mask_that_says_what_is_hidden_does_not_hide_everything_in_the_comparison() -> None:
    torch.manual_seed(0)
    x, hidden = torch.rand(3, 4, 8), torch.tensor([[False, False, True, True]] * 3)
    wrapped = compoff.wrap(Hiding().eval(), "layers.1", example_input=(x, hidden), codec="deepcod", channels=2)
    head, tail = compoff.export(wrapped, "layers.1")
    payload = head(x, hidden)
    assert head.compile("onnx", threads=1)(x, hidden) == payload
    torch.testing.assert_close(tail.compile("onnx")(payload), tail(payload))
