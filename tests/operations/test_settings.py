"""What a server is run with: where its tokens come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from compoff.errors import ConfigError, LocalProtocolError
from compoff.operations.settings import TOKEN_VARIABLE, Settings, placed, read_tokens, token_of_environment

if TYPE_CHECKING:
    from pathlib import Path


def test_the_variable_holds_a_token_where_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert token_of_environment() is None
    assert Settings(()).tokens is None
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    assert (token_of_environment(), Settings(()).tokens) == ("secret", "secret")
    (tmp_path / "token").write_text("other\n")
    assert Settings((), token_file=tmp_path / "token").tokens == ["other"]


def test_a_token_is_the_same_wherever_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, text in enumerate(("secret", "secret\r\n", " secret\n", "\ufeffsecret\n")):
        monkeypatch.setenv(TOKEN_VARIABLE, text)
        path = tmp_path / str(number)
        path.write_bytes(text.encode())
        assert (token_of_environment(), read_tokens(path)) == ("secret", ["secret"])


@pytest.mark.parametrize("empty", ["", " ", "\n"], ids=repr)
def test_an_empty_variable_lets_nobody_in_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty: str
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, empty)
    for ask in (token_of_environment, lambda: Settings(()).tokens):
        with pytest.raises(LocalProtocolError, match="the variable COMPOFF_TOKEN is set, but empty; give it a token"):
            ask()
    (tmp_path / "token").write_text("other\n")
    assert Settings((), token_file=tmp_path / "token").tokens == ["other"], "nobody asks the variable"


@pytest.mark.parametrize("empty", ["", "\n", " \n\t\n"], ids=repr)
def test_a_file_of_no_tokens_lets_nobody_in_and_is_named_with_where_it_is_written(tmp_path: Path, empty: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(empty, encoding="utf-8-sig")
    with pytest.raises(LocalProtocolError, match="tokens' holds no token; write one a line"):
        read_tokens(path)
    settings = Settings((), token_file=path, written={"token_file": "serve.yaml, line 3"})
    with pytest.raises(ConfigError, match=r"^serve\.yaml, line 3: '.*tokens' holds no token"):
        _ = settings.tokens
    with pytest.raises(LocalProtocolError, match=r"^'.*tokens' holds no token"):
        _ = Settings((), token_file=path).tokens


def test_lines_of_space_are_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("\n one \n \t\ntwo\n")
    assert read_tokens(path) == ["one", "two"]


def test_a_secret_takes_the_place_of_all_others_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    settings = Settings((), token_file=tmp_path / "none", secret="hidden")
    assert settings.tokens == "hidden"
    assert "hidden" not in repr(settings)


def test_an_error_of_the_system_is_told_with_where_its_cause_is_written() -> None:
    with (
        pytest.raises(ConfigError, match=r"^serve\.yaml, line 7: there is no 'edge\.pem'; correct the name"),
        placed("serve.yaml, line 7"),
    ):
        raise FileNotFoundError(2, "No such file or directory", "edge.pem")
