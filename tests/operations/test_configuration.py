"""serve.yaml: what is read, and that every mistake is one line with the line's number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compoff.errors import ConfigError
from compoff.operations.certificates import Authority
from compoff.operations.configuration import read_configuration
from compoff.operations.settings import TailPlace

ROOT = Path(__file__).parent.parent.parent


BOMB = "tails:\n  - &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  - &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


def written(folder: Path, text: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(text)
    return path


def test_little_is_enough(tmp_path: Path) -> None:
    settings, log = read_configuration(written(tmp_path, "tails: [export]\n"))
    assert settings.tails == (TailPlace(tmp_path / "export"),)
    assert (settings.address, settings.processes, settings.metrics, dict(settings.options)) == (
        "127.0.0.1:7878", 1, None, {},
    )  # fmt: skip
    assert (log.format, log.level) == ("text", "info")


def test_everything(tmp_path: Path) -> None:
    Authority(tmp_path / "certs").issue_server("edge", ["edge"])
    (tmp_path / "tokens").write_text("old\n\n new \n")
    text = """
address: 0.0.0.0:7878
tails:
  - export/layer2
  - {folder: /srv/layer3, device: cuda, backend: tensorrt}
  - {folder: export/neck, factory: "project.models:detector"}
token_file: tokens
tls: {certificate: certs/edge.pem, key: certs/edge.key, ca: certs/ca.pem, revoked: certs/revoked.pem}
limits: {window: 4, max_wait: 0, idle_timeout: 60.5}
processes: 3
metrics: 127.0.0.1:9464
log: {format: json, level: warning}
"""
    settings, log = read_configuration(written(tmp_path, text))
    assert settings.tails == (
        TailPlace(tmp_path / "export/layer2"),
        TailPlace(Path("/srv/layer3"), "cuda", backend="tensorrt"),
        TailPlace(tmp_path / "export/neck", "cpu", "project.models:detector"),
    )
    assert settings.tokens == ["old", "new"]
    assert settings.tls is not None
    assert settings.tls.revoked == tmp_path / "certs/revoked.pem"
    assert dict(settings.options) == {"window": 4, "max_wait": 0.0, "idle_timeout": 60.5}
    assert (settings.processes, settings.metrics) == (3, "127.0.0.1:9464")
    assert (log.format, log.level) == ("json", "warning")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("adress: edge:1\ntails: [x]\n", 1, "no setting adress"),
        ("address: 127.0.0.1:1\n", 1, "tails is missing"),
        ("tails: []\n", 1, "tails is an empty list; expected at least one entry"),
        ("tails: [x]\naddress: 127.0.0.1\n", 2, "not an address"),
        ("tails: [x]\nlimits:\n  window: 16\n  workers: none\n", 4, "limits.workers is 'none'"),
        ("tails: [x]\nlimits:\n  idle_timeout: .nan\n", 3, "idle_timeout"),
        ("tails: [x]\nlimits:\n  window: 70000\n", 3, "limits.window is 70000"),
        ("tails: [x]\nlimits:\n  max_wait: -1\n", 3, "limits.max_wait is -1"),
        ("tails: [x]\nlimits:\n  window: 65536\n", 3, "limits.window is 65536"),
        ("tails: [x]\nlimits:\n  idle_timeout: 0\n", 3, "limits.idle_timeout is 0"),
        ("tails: [x]\naddress:\n  nowhere\n", 2, "address is 'nowhere'"),
        ("tails: [x]\nprocesses: -0x" + "f" * 5000, 2, "processes is '-0xfff"),
        ("tails:\n  - x\n  - folder: y\n    devise: cuda\n", 4, "no setting tails.1.devise"),
        ("tails:\n  - x\n  - 7\n", 3, "tails.1 is 7"),
        ("tails: [x]\nlog: {format: xml}\n", 2, "log.format is 'xml'"),
        ("tails: [x]\ntls: {certificate: edge.pem}\n", 2, "tls.key is missing"),
        ("tails: [x]\n\ntls: {certificate: edge.pem, key: edge.key}\n", 3, "edge.pem' cannot be read"),
        ("tails: [x]\n# a comment\naddress: 0.0.0.0:1\n", 3, "insecure=True"),
        ("tails: [x]\nprocesses: 1\nprocesses: 2\n", 3, "processes was given in line 2 already"),
        ("tails: [x\n", 2, "expected YAML"),
        ("just words\n", 1, "expected settings"),
        ("", 1, "expected settings"),
        ("tails: [x]\ninsecure: perhaps\n", 2, "insecure is 'perhaps'"),
        ("tails: x\n", 1, "tails is 'x': expected a list"),
        ("tails: [x]\nlimits: [4]\n", 2, "limits is a list: expected settings by name"),
        ("tails: [x]\naddress: 7878\n", 2, "address is 7878: expected text"),
        ("tails: [{folder: 7}]\n", 1, "tails.0.folder is 7: expected a path"),
        ("tails: [x]\n? [a, b]\n: c\n", 2, "a list or mapping stands for a name in the file"),
        ("tails: [x]\nlog: {{a: b}: c}\n", 2, "a list or mapping stands for a name in log"),
        ("tails: [x]\nlimits: {7: 1}\n", 2, "'7' stands for a name in limits; expected text"),
        ("tails: [x]\nprocesses: " + "9" * 5000, 2, "processes is '999"),
        ("tails: [x]\nprocesses: 0x" + "f" * 5000, 2, "processes is '0xfff"),
        ("tails: [x]\nlimits: {window: 0x" + "f" * 5000 + "}", 2, "limits.window is '0xfff"),
        ("tails: [x]\nlimits: {workers: 1000000}\n", 2, "limits.workers is 1000000"),
        ("tails: [x]\nlimits: {drain_timeout: 1.0e+300}\n", 2, "limits.drain_timeout is 1e+300"),
        ("tails: [x]\nprocesses: yes\n", 2, "processes is True: expected a number; yes and no"),
        ("tails: [x]\nlimits: {max_wait: off}\n", 2, "limits.max_wait is False: expected a number"),
        ("tails: [x]\nprocesses: 2026-99-99\n", 2, "processes is '2026-99-99', which is no timestamp"),
        ("tails: [x]\nprocesses: !!bool foo\n", 2, "processes is 'foo', which is no bool"),
        ("tails: [x]\nprocesses: !!int ''\n", 2, "processes is '', which is no int"),
        ("tails: [x]\nprocesses: !!timestamp foo\n", 2, "processes is 'foo', which is no timestamp"),
        ('tails: ["a\\0b"]\n', 1, "tails.0.folder is 'a\\x00b': no file has a zero byte"),
        ('tails: [x]\ntls: {certificate: a, key: "b\\0"}\n', 2, "tls.key is 'b\\x00'"),
        ('tails: [x]\ntoken_file: "\\ud800"\n', 2, "token_file is '\\ud800'"),
        ("tails: [x]\naddress: '" + "a" * 5000 + "'\n", 2, "address is 'aaa"),
        ("tails: [x]\naddress: '" + "a" * 5000 + ":x'\n", 2, "address is 'aaa"),
        ("tails: [x]\n\nlog: " + "[" * 50_000, 3, "more than 16 deep"),
        ("log: " + "{a: " * 50_000, 1, "more than 16 deep"),
        ("tails:\n  - &a [*a]\n", 2, "tails.0.0"),
        (BOMB, 2, "tails.4.0.2.0.5.1 holds too many values"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_configuration(written(tmp_path, text))
    message = str(caught.value)
    assert f"serve.yaml, line {line}: " in message
    assert words in message
    assert "\n" not in message
    assert len(message) < 500 + len(str(tmp_path))


def test_several_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_configuration(written(tmp_path, "tails: [x]\nprocesses: 0\nlimits: {window: 0}\n"))
    assert [line.split(", ")[1].split(":")[0] for line in str(caught.value).splitlines()] == ["line 3", "line 2"]


def test_of_very_many_mistakes_the_first_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_configuration(written(tmp_path, "tails: [x]\n" + "".join(f"k{index}: 1\n" for index in range(100))))
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (21, "and 80 more")
    with pytest.raises(ConfigError) as caught:
        read_configuration(written(tmp_path, "tails: [x]\n" + "".join(f"k{index}: 1\n" for index in range(20))))
    assert len(str(caught.value).splitlines()) == 20


def test_a_token_file_that_holds_none_is_named_with_the_line_it_is_written_in(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("\n")
    settings, _ = read_configuration(written(tmp_path, "tails: [x]\n\ntoken_file: tokens\n"))
    with pytest.raises(ConfigError, match=r"serve\.yaml, line 3: '.*tokens' holds no token"):
        _ = settings.tokens


def test_a_zero_byte_is_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not YAML in UTF-8: unacceptable character"):
        read_configuration(written(tmp_path, "tails: [x]\n\0\n"))


def test_an_alias_stands_for_what_it_names(tmp_path: Path) -> None:
    settings, _ = read_configuration(
        written(tmp_path, "tails: [&one {folder: x, device: cuda}, {<<: *one, folder: y}]")
    )
    assert settings.tails == (TailPlace(tmp_path / "x", "cuda"), TailPlace(tmp_path / "y", "cuda"))


def test_no_object_is_built_from_a_tag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_configuration(written(tmp_path, "tails: !!python/object/apply:os.system ['true']\n"))


def test_without_pydantic_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from compoff.errors import BackendError\n"
        "try:\n    import compoff.operations.configuration\n"
        "except BackendError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "compoff[serve]" in done.stdout
