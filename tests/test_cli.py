"""The command line, as a user meets it: a real process of each kind, no traceback for a typo.

Where a test is of what a command says, not of its process, `here` runs it in this one: importing torch takes seconds.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import compoff
from compoff import cli
from compoff.__main__ import main
from compoff.artifact import write_folder
from compoff.coding import SymbolTables
from compoff.errors import ArtifactError, LocalProtocolError
from compoff.manifest import CodeSpec, Manifest
from compoff.operations.settings import Settings, TailPlace
from compoff.operations.worker import Worker
from tests.small_artifacts import forge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Here = Callable[..., subprocess.CompletedProcess[str]]


def _compoff(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compoff", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["compoff", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        assert code is None or isinstance(code, int)
        return subprocess.CompletedProcess(words, code or 0, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 6)).eval()
    model = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 8, 8)).eval()
    head, tail = compoff.export(model, "input")
    path = tmp_path_factory.mktemp("export")
    head.save(path / "head")
    tail.save(path / "tail")
    np.save(path.parent / "one.npy", np.ones((3, 8, 8), np.float32))
    np.save(path.parent / "three.npy", np.ones((3, 3, 8, 8), np.float32))
    np.save(path.parent / "expected.npy", tail(head(torch.ones(1, 3, 8, 8))).numpy())
    return path


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "compoff", "serve", str(folder), "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(timeout=60) == 0


def test_call_gets_what_the_tail_answers(folder: Path, address: str, tmp_path: Path) -> None:
    answer = tmp_path / "answer"  # the name that was given, without an ending added to it
    done = _compoff(
        "call", str(folder), "--address", address, "--input", str(folder.parent / "one.npy"), "--output", str(answer)
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(answer), np.load(folder.parent / "expected.npy"), atol=1e-5)
    assert "top 5: " in done.stdout
    assert "B sent" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such device")
def test_neither_the_file_nor_what_is_printed_costs_the_other(
    folder: Path, address: str, tmp_path: Path, here: Here
) -> None:
    words = ["call", str(folder), "--address", address, "--input", str(folder.parent / "one.npy"), "--output"]
    command = [sys.executable, "-m", "compoff", *words, str(tmp_path / "y.npy")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "compoff: No space left on device\n")
    assert np.load(tmp_path / "y.npy").shape == (1, 6)
    unsaved = here(*words, "/dev/full")
    assert unsaved.returncode == 1
    assert "top 5: " in unsaved.stdout
    assert "'/dev/full' cannot be written (No space left on device)" in unsaved.stderr


def test_an_answer_of_several_parts_is_saved_by_their_names(tmp_path: Path, here: Here) -> None:
    class Parts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            x = self.first(x)
            return {"logits": self.second(x), "embedding": x}

    model = compoff.wrap(Parts().eval(), "second", example_input=torch.zeros(2, 8))
    head, tail = compoff.export(model, "second")
    head.save(tmp_path / "head")
    np.save(tmp_path / "x.npy", np.ones((1, 8), np.float32))
    one = ["call", str(tmp_path / "head"), "--input", str(tmp_path / "x.npy")]
    with compoff.serve(tail) as server:
        asked = [*one, "--address", server.address]
        told = here(*asked, "--output", str(tmp_path / "y.npy"))
        assert told.returncode == 1
        assert "the model answers with a dict" in told.stderr
        assert "y.npz', which holds each array by its name" in told.stderr
        assert "cannot be written" in here(*asked, "--output", str(tmp_path / "nowhere" / "y.npz")).stderr
        told = here(*asked, "--input", str(tmp_path / "x.npy"))
        assert "2 --input were given, this head takes 1, one for each of its tensors: (x: float32 of" in told.stderr
        assert server.stats().tails[0].requests == 0
        assert here(*asked, "--output", str(tmp_path / "y.npz")).returncode == 0
    expected = tail(head(torch.ones(1, 8)))
    with np.load(tmp_path / "y.npz") as saved:
        assert sorted(saved) == ["embedding", "logits"]
        for name in saved:
            np.testing.assert_allclose(saved[name], expected[name], atol=1e-5)


def test_ping_says_what_a_device_finds(folder: Path, address: str, here: Here, tmp_path: Path) -> None:
    found = here("ping", str(folder), "--address", address, "--rounds", "3")
    lines = found.stdout.splitlines()
    assert found.returncode == 0
    assert lines[0].startswith(f"{address}: connected in plain TCP in ")
    assert lines[1].startswith("Sequential at 'input' (")
    assert ": served, payloads of up to " in lines[1]
    assert lines[2].startswith("3 rounds: median ")
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6)).eval()
    other, _ = compoff.export(compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 8, 8)).eval(), "input")
    other.save(tmp_path / "other")
    partly = here("ping", str(folder), str(tmp_path / "other"), "--address", address)
    assert partly.returncode == 1
    assert "NOT SERVED" in partly.stdout
    none = here("ping", str(tmp_path / "other"), "--address", address)
    assert none.returncode == 1
    assert "no tail here belongs to the head" in none.stderr


def test_call_takes_a_batch(folder: Path, address: str, here: Here) -> None:
    done = here("call", str(folder), "--address", address, "--input", str(folder.parent / "three.npy"))
    assert done.stdout.count("top 5: ") == 3


def test_inspect_tells_both_parts(folder: Path, here: Here) -> None:
    told = json.loads(here("inspect", str(folder), "--json").stdout)
    assert [part["kind"] for part in told] == ["head", "tail"]
    assert told[0]["artifact_id"] == told[1]["artifact_id"]
    assert told[0]["ceiling_bytes"] == compoff.Head.load(folder).payload_format.max_bytes(1)
    table = here("inspect", str(folder / "tail")).stdout
    assert "artifact_id" in table
    assert "tail.pt2" in table


def test_a_tail_is_compiled_once_and_served_from_its_engine(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "export")
    cli.compile_tail(tmp_path / "export", cli.Backend.onnx)
    assert "onnx) on cpu: asked for; outputs within " in capsys.readouterr().out
    cli.inspect(tmp_path / "export" / "tail", as_json=True)
    (part,) = json.loads(capsys.readouterr().out)
    assert [engine["state"] for engine in part["engines"]] == ["whole", "whole"]
    settings = Settings((TailPlace(tmp_path / "export", backend="auto"),), "127.0.0.1:0")
    worker = Worker(settings)
    try:
        assert worker.served[0].endswith(", onnx)")
    finally:
        worker.stop()


def test_inspect_of_a_tail_without_its_program_names_the_file(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tail", tmp_path / "tail")
    (tmp_path / "tail" / "tail.pt2").unlink()
    with pytest.raises(ArtifactError, match=r"tail\.pt2: cannot be read"):
        cli.inspect(tmp_path / "tail")


def test_the_version_and_the_help_of_every_command(here: Here) -> None:
    assert here("--version").stdout == f"compoff {compoff.__version__}\n"
    whole = here("-h")
    assert whole.returncode == 0
    assert "across a weak device" in whole.stdout
    for name in ("demo", "inspect", "doctor", "serve", "compile", "export-triton", "top", "call", "export-c", "certs"):
        assert name in whole.stdout
        told = here(name, "-h")
        assert (told.returncode, told.stdout) == (0, here(name, "--help").stdout)
        assert f"compoff {name}" in told.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inspect", "no-such-folder"], "no-such-folder"),
        (["serve", "no-such-folder"], "no-such-folder"),
        (["serv"], "serve"),
        (["serve", "FOLDER", "--backend", "onxx"], "onxx"),
        (["compile", "no-such-folder"], "no-such-folder"),
        (["call", "FOLDER", "--address", "nonsense", "--input", "ONE"], "host:port"),
        (["call", "FOLDER", "--address", "127.0.0.1:1", "--input", "ONE"], "compoff serve"),
        (["call", "FOLDER", "--address", "127.0.0.1:1", "--input", "nowhere.npy"], "there is no 'nowhere.npy'"),
        (["call", "FOLDER", "--address", "127.0.0.1:1", "--input", "FOLDER"], "' is a folder; give a file"),
        (["serve", "--config", "nowhere.yaml"], "there is no 'nowhere.yaml'; correct the name"),
        (["export-c", "FOLDER", "--output", "no-such-folder/x.h"], "there is no folder 'no-such-folder'; make it"),
        (["export-triton", "FOLDER", "TEXT"], "is a file; give the folder of Triton's models"),
        (["certs", "TEXT"], "is a file; give a folder"),
        (["call", "FOLDER", "--address", "127.0.0.1:1", "--input", "TEXT"], "numpy.save"),
        (["demo", "--data", "no-such-folder"], "no-such-folder"),
        (["demo", "--seed", "-1"], "seed is -1; expected a whole number of at least 0"),
        (["demo", "--seed", str(1 << 70)], f"seed is {1 << 70}; expected a whole number of at most 4294967295"),
    ],
    ids=" ".join,
)
def test_a_typo_gets_one_message_and_no_traceback(
    folder: Path,
    tmp_path: Path,
    words: list[str],
    told: str,
    here: Here,
) -> None:
    (tmp_path / "text.npy").write_text("text")
    names = {"FOLDER": str(folder), "ONE": str(folder.parent / "one.npy"), "TEXT": str(tmp_path / "text.npy")}
    refused = here(*(names.get(word, word) for word in words))
    assert refused.returncode != 0
    assert told in refused.stderr
    assert "Errno" not in refused.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("_multiprocessing", "this command needs _multiprocessing, which this Python lacks; use one"),
        ("prometheus_client", "this command needs prometheus_client, which is not installed; install it, or the extra"),
    ],
)
def test_a_module_that_is_missing_is_installed_only_where_that_can_be(
    here: Here, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    def app() -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(cli, "app", app)
    done = here("serve")
    assert done.returncode == 1
    assert done.stderr.startswith(f"compoff: {words}")


def test_a_failing_command_prints_no_traceback() -> None:
    done = _compoff("inspect", "no-such-folder")
    assert done.returncode == 1
    assert done.stderr.startswith("compoff: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_has_no_letter_for_costs_nobody_the_rest(
    folder: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    command = [sys.executable, "-m", "compoff", "inspect", str(folder)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "Sequential" in done.stdout.decode(encoding)
    assert f"head {'?' if encoding == 'ascii' else '·'} {folder}" in done.stdout.decode(encoding)
    assert "?" in done.stdout.decode(encoding), "neither has a dash of that length"


def test_an_empty_token_is_told_by_the_name_of_its_variable(
    folder: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPOFF_TOKEN", "")
    for words in (
        ["ping", str(folder), "--address", "127.0.0.1:1"],
        ["serve", str(folder), "--address", "127.0.0.1:0"],
    ):
        refused = here(*words)
        assert refused.returncode == 1
        assert "the variable COMPOFF_TOKEN is set, but empty" in refused.stderr


def test_a_wrong_token_is_refused(folder: Path, tmp_path: Path, here: Here) -> None:
    (tmp_path / "token").write_text("right\n")
    (tmp_path / "wrong").write_text("wrong\n")
    words = ["serve", str(folder), "--address", "127.0.0.1:0", "--token-file", str(tmp_path / "token")]
    with subprocess.Popen([sys.executable, "-m", "compoff", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[-1]
            call = ["call", str(folder), "--address", address, "--input", str(folder.parent / "one.npy")]
            refused = here(*call, "--token-file", str(tmp_path / "wrong"))
            served = here(*call, "--token-file", str(tmp_path / "token"))
        finally:
            process.terminate()
    assert refused.returncode == 1
    assert "token" in refused.stderr
    assert served.returncode == 0


def test_a_token_file_that_is_no_text_shows_none_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xffsecret")
    with pytest.raises(LocalProtocolError, match="UTF-8") as caught:
        cli._token(tmp_path / "token")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_inspect_shows_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run[/x]"
    code = CodeSpec((1, 2), num_centers=2, qualities=(1,))
    manifest = Manifest("head", "00" * 32, "layers[/0]", "[red]Net", (), (), {"value": 0}, (code,), (), max_batch=8)
    write_folder(folder, manifest, [SymbolTables([[2**23, 2**23]])], {"head.pt2": b"program"})
    monkeypatch.setenv("COLUMNS", "1000")
    cli.inspect(folder)
    shown = capsys.readouterr().out
    assert "layers[/0]" in shown
    assert "[red]Net" in shown


def test_words_of_a_forged_folder_do_not_steer_the_terminal(folder: Path, tmp_path: Path, here: Here) -> None:
    evil = "\x1b[2J\x9b31mNet"
    shutil.copytree(folder, tmp_path / "export")
    for kind in ("head", "tail"):
        forge(tmp_path / "export" / kind, lambda content: content.update(model=evil, **{evil: 1}))
    refused = here("inspect", str(tmp_path / "export"))
    assert refused.returncode == 1
    assert "keys ?[2J?31mNet are missing or unknown" in refused.stderr
    for kind in ("head", "tail"):
        forge(tmp_path / "export" / kind, lambda content: content.pop(evil))
    header = str(tmp_path / "export.h")
    for command, *options in (["export-c", "--output", header], ["compile", "--backend", "eager"], ["inspect"]):
        done = here(command, str(tmp_path / "export"), *options)
        assert done.returncode == 0, done.stderr
        assert "?[2J?31mNet" in done.stdout
        assert all(line.isprintable() for line in done.stdout.splitlines())


def test_certificates_for_a_first_try(folder: Path, tmp_path: Path, here: Here) -> None:
    certs = str(tmp_path / "certs")
    made = here("certs", certs, "--server", "localhost", "--server", "127.0.0.1", "--device", "camera-1")
    assert made.returncode == 0, made.stderr
    pairs = {line.split(": ", 1)[0]: line.split(": ", 1)[1].split() for line in made.stdout.splitlines()}
    trust = ["--ca", f"{certs}/ca.pem"]
    command = [sys.executable, "-m", "compoff", "serve", str(folder), "--address", "127.0.0.1:0", *pairs["server"]]
    process = subprocess.Popen([*command, *trust], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().rsplit(" ", 1)[1].strip()
        ask = ("call", str(folder), "--address", address, "--input", str(folder.parent / "one.npy"), *trust)
        assert "top 5" in here(*ask, *pairs["device camera-1"]).stdout
        refused = here(*ask)
        assert refused.returncode == 1
        assert "certificate" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    again = here("certs", certs, "--device", "camera-1")
    assert (again.returncode, "there already" in again.stderr) == (1, True)
    assert "revoked camera-1" in here("certs", certs, "--revoke", "camera-1").stdout
    unknown = here("certs", certs, "--device", "camera-2", "--revoke", "camera-9")
    assert (unknown.returncode, "no certificate 'camera-9'" in unknown.stderr) == (1, True)
    assert not (tmp_path / "certs" / "camera-2.pem").exists()


def test_nothing_is_taken_back_where_there_is_no_authority(tmp_path: Path, here: Here) -> None:
    refused = here("certs", str(tmp_path / "new"), "--revoke", "camera-1")
    assert (refused.returncode, "holds no authority" in refused.stderr) == (1, True)
    assert not (tmp_path / "new").exists()


def test_a_device_is_not_called_as_the_server(tmp_path: Path, here: Here) -> None:
    refused = here("certs", str(tmp_path / "new"), "--server", "localhost", "--device", "edge", "--renew")
    assert (refused.returncode, "a device is called 'edge', as the server's own" in refused.stderr) == (1, True)
    assert not (tmp_path / "new").exists()


def test_serving_other_machines_in_plain_has_to_be_asked_for(folder: Path, here: Here) -> None:
    refused = here("serve", str(folder), "--address", "0.0.0.0:0")
    assert refused.returncode == 1
    assert "insecure=True" in refused.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--token-file", "tokens"], "--token-file"),
        (["--processes", "2", "--backend", "onnx"], "--backend, --processes"),
        (["--insecure"], "--insecure"),
        (["tail", "--address", "127.0.0.1:7878"], "--address, folders"),
    ],
)
def test_nothing_beside_a_file_that_says_everything_is_left_unheeded(words: list[str], told: str, here: Here) -> None:
    done = here("serve", "--config", "serve.yaml", *words)
    assert done.returncode == 1
    assert f"{told} and --config were both given; say it in the file" in done.stderr.replace("\n", " ")
