"""The token: who may come in, and what cannot be a token."""

from __future__ import annotations

import hmac

import pytest

from compoff.errors import LocalProtocolError
from compoff.wire import security
from compoff.wire.security import MAX_TOKEN_BYTES, check_token_form, token_matches


@pytest.mark.parametrize(
    ("expected", "offered", "opens"),
    [
        (None, None, True),
        (None, "any", True),
        ("secret", "secret", True),
        ("secret", None, False),
        ("secret", "", False),
        ("secret", "Secret", False),
        ("secret", "secret ", False),
        ("sëcret", "sëcret", True),
    ],
)
def test_who_may_come_in(expected: str | None, offered: str | None, opens: bool) -> None:
    assert token_matches(expected, offered) is opens


def test_it_is_compared_in_constant_time_at_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def spy(left: bytes, right: bytes) -> bool:
        lengths.append((len(left), len(right)))
        return real(left, right)

    monkeypatch.setattr(security.hmac, "compare_digest", spy)
    for offered in (None, "s", "secret", "x" * 1000):
        token_matches("secret", offered)
    assert lengths == [(32, 32)] * 4


def test_the_form_of_a_token() -> None:
    check_token_form(None)
    check_token_form("x" * MAX_TOKEN_BYTES)
    for bad in ("", "x" * (MAX_TOKEN_BYTES + 1)):
        with pytest.raises(LocalProtocolError, match="expected 1 to 1024"):
            check_token_form(bad)


def test_a_refused_token_is_not_in_the_message() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        check_token_form("hunter2\ud800")
    assert "hunter2" not in str(caught.value)
