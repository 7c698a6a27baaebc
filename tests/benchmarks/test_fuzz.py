"""Every input that the fuzzer kept, and some that nobody chose, against both ends of the wire."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import CORPUS, play


def test_the_corpus_breaks_no_rule() -> None:
    kept = [bytes.fromhex(line) for line in CORPUS.read_text().split()]
    assert len(kept) > 50
    assert sum(map(play, kept)) > 200


@settings(max_examples=500)
@given(st.binary(max_size=400))
def test_nothing_else_does(data: bytes) -> None:
    assert play(data) >= 1
