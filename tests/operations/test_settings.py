"""What a server is run with: where its tokens come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from compoff.errors import LocalProtocolError
from compoff.operations.settings import TOKEN_VARIABLE, Settings, read_tokens, token_of_environment

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
