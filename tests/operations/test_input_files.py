"""Files that are an input, and files that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from compoff.errors import FeatureError
from compoff.operations.input_files import read_input

if TYPE_CHECKING:
    from pathlib import Path


def test_files_that_are_no_input_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "several.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 is not the start of a zip file here")
    np.save(tmp_path / "one.npy", np.zeros(3))
    huge = (tmp_path / "one.npy").read_bytes().replace(b"(3,), ", b"(3000000000000,), ")
    (tmp_path / "huge.npy").write_bytes(huge)
    for name, told in (("several.npz", "several arrays"), ("zip.npy", "numpy.save"), ("huge.npy", "numpy.save")):
        with pytest.raises(FeatureError, match=told):
            read_input(tmp_path / name, 1)
    assert read_input(tmp_path / "one.npy", 1).shape == (1, 3)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b"0" * 32 + b",), }\n",
        b"{'descr': [('a', '<f4', -1)], 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': {'a': 1}, 'fortran_order': False, 'shape': (1,), }\n",
        b"(" * 5000 + b"\n",
        b"\xff\xfe{'descr': '<f4'\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n",
    ],
    ids=["size", "dtype", "dict", "brackets", "text", "negative"],
)
@pytest.mark.filterwarnings("ignore:Reading")
def test_a_damaged_header_is_named(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"abcd")
    with pytest.raises(FeatureError, match=r"damaged\.npy' is not a \.npy file of numbers"):
        read_input(path, 1)
