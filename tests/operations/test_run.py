"""`compoff serve` as an operator meets it: real processes, signals, reloads under open connections."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch

import compoff
from compoff.operations import run
from compoff.operations.certificates import Authority
from compoff.operations.run import _reload
from compoff.operations.settings import Settings, TailPlace
from compoff.operations.top import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent.parent
X = torch.ones(1, 3, 8, 8)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export")
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6)).eval()
        wrapped = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 8, 8)).eval()
        head, tail = compoff.export(wrapped, "input")
        head.save(path / name / "head")
        tail.save(path / name / "tail")
    return path


class Serving:
    """A `compoff serve` process."""

    def __init__(self, *words: str | Path) -> None:
        command = [sys.executable, "-m", "compoff", "serve", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.errors: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        self.metrics = ""
        line = self.process.stdout.readline()
        if line.startswith("metrics on"):
            self.metrics = line.split("//")[1].strip("/\n")
            line = self.process.stdout.readline()
        self.address = line.split()[-1] if line else ""

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as said:
            self.errors.extend(said)

    def says(self, words: str) -> None:
        """Wait until it has said something in its log."""
        within(60, lambda: any(words in line for line in self.errors))

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        with self.process.stdout as said:
            out = said.read()
        code = self.process.wait(60)
        self._reading.join()
        return code, out, "".join(self.errors)


@pytest.fixture
def serving() -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def start(*words: str | Path) -> Serving:
        started.append(Serving(*words))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        if one.process.stdout is not None and not one.process.stdout.closed:
            one.end()


def written(folder: Path, **settings: Any) -> Path:
    path = folder / "serve.yaml"
    path.write_text(json.dumps({"address": "127.0.0.1:0", "metrics": "127.0.0.1:0", **settings}))  # JSON is YAML
    return path


def within(seconds: float, condition: Callable[[], bool]) -> None:
    """Wait until something holds; processes that load a model take their time on a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(export: Path, address: str, name: str = "first", **options: Any) -> bool:
    head, tail = compoff.Head.load(export / name), compoff.Tail.load(export / name)
    with head.connect(address, timeout=60, **options) as remote:
        return torch.allclose(remote(X), tail(head(X)), atol=1e-5)


def test_a_file_is_enough_and_sigterm_lets_answers_out(export: Path, tmp_path: Path, serving: Any) -> None:
    server = serving("--config", written(tmp_path, tails=[str(export / "first")], log={"format": "json"}))
    assert answers(export, server.address)
    assert fetch(server.metrics)["tails"][0]["replies"] == 1
    code, out, errors = server.end()
    assert (code, out) == (0, "stopped\n")
    first = json.loads(errors.splitlines()[0])
    assert (first["level"], first["logger"]) == ("INFO", "compoff.serve")
    assert server.address in first["message"]


def test_sighup_reads_tokens_certificates_tails_and_the_file_again(export: Path, tmp_path: Path, serving: Any) -> None:
    authority = Authority(tmp_path)
    authority.issue_server("edge", ["127.0.0.1"])
    authority.issue_device("camera")
    (tmp_path / "tokens").write_text("old\n")
    tls = {"certificate": "edge.pem", "key": "edge.key", "ca": "ca.pem", "revoked": "revoked.pem"}
    settings = {"tls": tls, "token_file": "tokens"}
    server = serving("--config", written(tmp_path, tails=[str(export / "first")], **settings))
    ours = compoff.TLS(ca=tmp_path / "ca.pem", certificate=tmp_path / "camera.pem", key=tmp_path / "camera.key")
    head = compoff.Head.load(export / "first")
    with compoff.connect(head, server.address, tls=ours, token="old", timeout=60, heartbeat=30) as before:
        before(X)
        (tmp_path / "tokens").write_text("new\n")
        authority.issue_server("edge", ["127.0.0.1"], renew=True)
        written(tmp_path, tails=[str(export / "first"), str(export / "second")], **settings)
        server.hang_up()
        within(30, lambda: len(fetch(server.metrics)["tails"]) == 2)
        before(X)
        assert before.stats.connections == 1, "a connection that stands is not touched"
    with pytest.raises(compoff.AuthenticationError, match="token"):
        answers(export, server.address, tls=ours, token="old")
    assert answers(export, server.address, "second", tls=ours, token="new")
    # Other files, limits and logs than at the start: said, and not taken over.
    written(
        tmp_path,
        tails=[str(export / "first"), str(export / "second")],
        **{**settings, "tls": {"certificate": "edge.pem", "key": "edge.key"}},
        limits={"window": 3},
        log={"level": "error"},
    )
    authority.revoke("camera")
    server.hang_up()

    def refused() -> bool:
        try:
            return not answers(export, server.address, tls=ours, token="new")
        except compoff.WireError as error:
            return re.search(r"certificate|hung up", str(error)) is not None

    within(60, refused)
    server.says("a change of log needs a restart")
    code, _, errors = server.end()
    assert code == 0
    for name in ("the files that tls names", "limits", "log"):
        assert f"a change of {name} needs a restart" in errors


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_sighup_while_the_command_line_is_still_loaded_is_kept_until_it_serves(export: Path, tmp_path: Path) -> None:
    program = """
import os, signal, sys
import compoff.__main__

class HangingUp:
    @staticmethod
    def find_spec(name, *rest):
        if name == "compoff.cli":
            os.kill(os.getpid(), signal.SIGHUP)

sys.meta_path.insert(0, HangingUp)
compoff.__main__.main()
"""
    path = written(tmp_path, tails=[str(export / "first")])
    command = [sys.executable, "-c", program, "serve", "--config", str(path)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert any("reloaded the tails" in line for line in server.stderr)
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


def test_a_mistake_at_sighup_leaves_everything_as_it_was(export: Path, tmp_path: Path, serving: Any) -> None:
    path = written(tmp_path, tails=[str(export / "first")])
    server = serving("--config", path)
    path.write_text("tails: 7\n")
    server.hang_up()
    server.says("the settings stay as they were")
    path.write_text(json.dumps({"tails": [str(tmp_path / "nothing")]}))
    server.hang_up()
    server.says("the tails stay as they were")
    assert answers(export, server.address)
    code, _, errors = server.end()
    assert code == 0
    assert "the settings stay as they were" in errors
    assert "the tails stay as they were" in errors
    assert "a change of address needs a restart" in errors
    assert "a change of the files that tls names" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "error", [compoff.ConfigError("serve.yaml, line 3: no"), FileNotFoundError(2, "gone"), MemoryError()]
)
def test_a_mistake_in_the_settings_keeps_no_token_that_was_taken_back(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def reread() -> Any:
        raise error

    told: list[Settings] = []
    group: Any = SimpleNamespace(reload=told.append)
    settings = Settings((TailPlace(Path("export")),), token_file=Path("tokens"))
    assert _reload(group, settings, ("text", "info"), reread) == settings
    assert told == [settings], "the files that the settings in force name are read again all the same"
    assert "the settings stay as they were" in caplog.text


def test_several_processes_share_a_port_and_one_that_dies_comes_back(
    export: Path, tmp_path: Path, serving: Any
) -> None:
    server = serving("--config", written(tmp_path, tails=[str(export / "first")], processes=2))
    head = compoff.Head.load(export / "first")
    remotes = [compoff.connect(head, server.address, timeout=60, heartbeat=30) for _ in range(12)]
    for remote in remotes:
        remote(X)
    figures = fetch(server.metrics)
    assert (figures["processes"], figures["ready"], figures["tails"][0]["replies"]) == (2, True, 12)
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if children.exists():
        started = [int(number) for number in children.read_text().split()]
        servers = [pid for pid in started if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(servers) == 2
        os.kill(servers[0], signal.SIGKILL)
        for remote in remotes:
            assert remote(X).shape == (1, 6), "whoever was connected there is served by the other"
        within(90, lambda: fetch(server.metrics)["processes"] == 2)
    for remote in remotes:
        remote.close()
    code, out, errors = server.end(signal.SIGINT)
    assert (code, out) == (0, "stopped\n")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tails": ["nothing"]}, "nothing"),
        ({"tails": ["nothing"], "processes": 2}, "nothing"),
        ({"tails": 7}, "line 1"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_1(
    tmp_path: Path, serving: Any, settings: dict[str, Any], words: str
) -> None:
    code, _, errors = serving("--config", written(tmp_path, **settings)).end()
    assert code == 1
    assert words in errors
    assert "Traceback" not in errors


def test_a_server_outlives_whoever_reads_what_it_says(export: Path, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    path = written(tmp_path, tails=[str(export / "first")], log={"format": "json"})
    command = [sys.executable, "-m", "compoff", "serve", "--config", str(path)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    try:
        assert server.stderr is not None
        listening = json.loads(next(server.stderr))["message"]
        assert "standard output is closed" in next(server.stderr)
        assert answers(export, listening.split()[-1])
        server.terminate()
        _, errors = server.communicate(timeout=60)
        assert server.returncode == 0
        assert "Traceback" not in errors
        assert "BrokenPipe" not in errors
    finally:
        server.kill()
        server.communicate()


def test_folders_and_a_file_are_not_mixed(export: Path, tmp_path: Path, serving: Any) -> None:
    server = serving(export / "first", "--config", written(tmp_path, tails=[str(export / "first")]))
    code, _, errors = server.end()
    assert (code, "both given" in errors) == (1, True)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes through /proc")
def test_processes_end_with_the_one_that_started_them(export: Path, tmp_path: Path, serving: Any) -> None:
    server = serving("--config", written(tmp_path, tails=[str(export / "first")], processes=2))
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    server.process.kill()
    server.process.wait()
    within(60, lambda: not any(alive(pid) for pid in children))


def alive(pid: str) -> bool:
    """Whether a process runs; one that has ended and that nobody asks about does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def with_torch(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of those of a server's processes that have loaded torch."""
    found: list[int] = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [child.pid] if any("libtorch_cpu" in one.path for one in child.memory_maps()) else []
    return found


def test_fronts_share_one_process_with_the_tails_and_outlive_it(export: Path, tmp_path: Path, serving: Any) -> None:
    server = serving("--config", written(tmp_path, tails=[str(export / "first")], fronts=2))
    (keeper,) = with_torch(server.process)
    head, tail = compoff.Head.load(export / "first"), compoff.Tail.load(export / "first")
    with compoff.connect(head, server.address, timeout=90, heartbeat=30) as remote:
        assert torch.allclose(remote(X), tail(head(X)), atol=1e-5)
        figures = fetch(server.metrics)
        assert (figures["processes"], figures["tails"][0]["replies"]) == (2, 1)
        os.kill(keeper, signal.SIGKILL)
        for _ in range(3):
            assert torch.allclose(remote(X), tail(head(X)), atol=1e-5)
    assert with_torch(server.process) != [keeper]
    code, _, errors = server.end()
    assert code == 0
    assert "server process with the tails died" in errors


def test_fronts_take_new_tails_when_somebody_can_answer_with_them(export: Path, tmp_path: Path, serving: Any) -> None:
    place = tmp_path / "export"
    shutil.copytree(export / "first", place)
    server = serving("--config", written(tmp_path, tails=[str(place)], fronts=1))
    first = compoff.Head.load(export / "first")
    with compoff.connect(first, server.address, timeout=90, heartbeat=30) as remote:
        remote(X)
        # Another export in the same folder that the process with the tails cannot run.
        shutil.rmtree(place)
        shutil.copytree(export / "second", place)
        written(tmp_path, tails=[{"folder": str(place), "device": "cuda:7"}], fronts=1)
        server.hang_up()
        server.says("the tails stay as they were")
        remote(X)
        # And one that it can: whoever is welcomed is answered, what was served goes on for a while behind the scenes.
        written(tmp_path, tails=[str(place)], fronts=1)
        server.hang_up()

        def welcomed() -> bool:
            with contextlib.suppress(compoff.ArtifactMismatch):
                return answers(export, server.address, "second")
            return False

        within(60, welcomed)
        with pytest.raises(compoff.ArtifactMismatch):
            remote(X)
    code, _, errors = server.end()
    assert code == 0
    assert "the tails stay as they were" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["--fronts", "--processes"])
def test_a_typing_error_does_not_take_the_machine(export: Path, name: str) -> None:
    command = [sys.executable, "-m", "compoff", "serve", str(export / "first"), name, "1025"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"{name[2:]} is 1025; expected at most 1024" in done.stderr


def test_fronts_and_processes_together_are_refused(export: Path) -> None:
    command = [sys.executable, "-m", "compoff", "serve", str(export / "first"), "--fronts", "2", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "with fronts one process holds the tails" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_process_needs_nothing_of_what_several_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compoff.operations.processes", None)
    runpy.run_path(run.__file__)
