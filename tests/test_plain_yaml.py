"""YAML that holds data: what is written is read back, what holds anything else is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.plain_yaml import dump_yaml, load_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_what_is_written_is_read_back(content: dict[str, Any]) -> None:
    assert load_yaml(dump_yaml(content)) == content


@pytest.mark.parametrize("text", ["a\x85b", "\u2028", "\u2029", "\r\n", "\x00", "\U0001f600", "\ufeff"])
def test_every_character_comes_back(text: str) -> None:
    assert load_yaml(dump_yaml({text: [text]})) == {text: [text]}


def test_keys_keep_their_order_and_tuples_become_lists() -> None:
    read = load_yaml(dump_yaml({"b": (1, 2), "a": "é"}))
    assert list(read) == ["b", "a"]
    assert read["b"] == [1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x", "aliases or tags"),
        ("!!python/object/apply:os.getcwd []", "aliases or tags"),
        ("a: " + "1" * 1100, "more than 1000 digits"),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ("a: 2026-11-30", "date is not JSON serializable"),
        ("a: [1", "while parsing a flow sequence"),
        ("a: \x00", "special characters"),
        ("a: 1" + ":59" * 300 + ".0", "too large"),
    ],
)
def test_what_is_no_plain_data_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load_yaml(text.encode())
    assert len(str(caught.value)) <= 300


def test_what_would_not_be_read_is_not_written() -> None:
    deep: dict[str, Any] = {}
    for _ in range(64):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nested 65 levels deep, at most 64 are read"):
        dump_yaml(deep)
    assert load_yaml(dump_yaml(deep["a"])) == deep["a"]
