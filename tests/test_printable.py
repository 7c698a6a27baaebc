"""What is put in the place of characters that are not to be seen."""

from __future__ import annotations

import string
import sys

from compoff.printable import first_line, printable


def test_no_control_character_passes_and_no_letter_is_lost() -> None:
    controls = [chr(code) for code in range(sys.maxunicode + 1) if code < 32 or 127 <= code < 160]
    for char in [*controls, "\u202e", "\u2028", "\ud800"]:
        assert printable(f"a{char}b") == "a?b"
    kept = string.ascii_letters + string.digits + string.punctuation + " größe 中文 ·–µ"
    assert printable(kept) == kept


def test_what_is_to_be_kept_is_kept() -> None:
    assert printable("one\ntwo\r\x1b", keep="\n") == "one\ntwo??"


def test_an_error_is_told_in_its_first_line() -> None:
    assert first_line(RuntimeError(" \n  no.\nCPU: registered at …")) == "no"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("abcd"), 3) == "abc…"
    assert (
        first_line(ValueError("Error(s) in loading:\n\tMissing keys: a.\n\tOther"))
        == "Error(s) in loading: Missing keys: a"
    )
    assert first_line(ValueError("cut off:")) == "cut off"
    assert first_line(TypeError("got a list, but expected one of:\n * (Tensor x)\n")) == "got a list"
