"""The files to deploy with: each is read by whoever reads it in earnest, as far as that is installed here."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from compoff.operations.certificates import Authority
from compoff.operations.configuration import read_configuration

DEPLOY = Path(__file__).parent.parent.parent / "examples" / "deploy"


def test_the_configuration_is_one_that_serves(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "serve.yaml", tmp_path)
    authority = Authority(tmp_path / "certs")
    authority.issue_server("edge", ["edge.example"])
    settings, log = read_configuration(tmp_path / "serve.yaml")
    assert settings.tls is not None
    assert not settings.insecure
    assert settings.tails[0].folder == tmp_path / "export/layer2"
    assert log.format == "json"


def test_what_is_commented_out_is_right_too(tmp_path: Path) -> None:
    text = re.sub(r"^( *)# (- \{|token_file)", r"\1\2", (DEPLOY / "serve.yaml").read_text(), flags=re.MULTILINE)
    (tmp_path / "serve.yaml").write_text(text)
    Authority(tmp_path / "certs").issue_server("edge", ["edge.example"])
    settings, _ = read_configuration(tmp_path / "serve.yaml")
    assert [tail.device for tail in settings.tails] == ["cpu", "cuda"]
    assert settings.token_file == tmp_path / "tokens"


def test_the_unit_reloads_and_stops_as_the_server_means_it() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(DEPLOY / "compoff.service")
    service = unit["Service"]
    assert service["ExecStart"].endswith("compoff serve --config /etc/compoff/serve.yaml")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["KillMode"], service["KillSignal"]) == ("mixed", "SIGTERM")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    text = (DEPLOY / "compoff.service").read_text().replace("/opt/compoff/venv/bin/compoff", "/bin/true")
    (tmp_path / "compoff.service").write_text(text.replace("User=compoff", "User=root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "compoff.service")], capture_output=True, text=True, check=False
    )
    assert "compoff.service" not in done.stderr, done.stderr


def test_the_image_starts_what_the_unit_starts() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    entry, command = (json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith(("ENTRYPOINT", "CMD")))
    assert [*entry, *command] == ["compoff", "serve", "--config", "/etc/compoff/serve.yaml"]
    assert "USER compoff" in lines
