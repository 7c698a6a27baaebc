"""Addresses: what is one, and that everything else says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.errors import LocalProtocolError
from compoff.wire.address import format_address, parse_address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("edge:7878", "edge", 7878),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("edge.example.org:07", "edge.example.org", 7),
    ],
)
def test_addresses(address: str, host: str, port: int) -> None:
    assert parse_address(address) == (host, port)


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":",
        ":7878",
        "edge",
        "edge:",
        "edge:x",
        "edge:-1",
        "edge:65536",
        "edge:٣",
        "edge:1e3",
        "::1:7878",
        "[::1]",
        "[::1]:",
        "[]:80",
        "[edge]:80",
        "edge :80",
        "ed ge:80",
        "http://edge:80",
        "user@edge:80",
        "edge:80 ",
        "[[::1]]:80",
        "a\x00b:80",
    ],
)
def test_other_texts(address: str) -> None:
    with pytest.raises(LocalProtocolError, match="expected"):
        parse_address(address)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_round_trip(host: object, port: int) -> None:
    assert parse_address(format_address(str(host), port)) == (str(host), port)


@given(st.text(max_size=40))
def test_no_text_does_more_than_raise_our_error(text: str) -> None:
    try:
        host, port = parse_address(text)
    except LocalProtocolError:
        return
    assert host
    assert 0 <= port <= 65535
