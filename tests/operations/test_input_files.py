"""Files that are an input, and files that are none."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from compoff.errors import FeatureError
from compoff.operations.input_files import read_input

if TYPE_CHECKING:
    from collections.abc import Iterator

_OLD_NUMPY = np.lib.NumpyVersion(np.__version__) < "2.3.0"


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
        pytest.param(
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n",
            marks=pytest.mark.skipif(_OLD_NUMPY, reason="numpy before 2.3 takes it for as many as there are"),
        ),
    ],
    ids=["size", "dtype", "dict", "brackets", "text", "negative"],
)
@pytest.mark.filterwarnings("ignore:Reading")
def test_a_damaged_header_is_named(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"abcd")
    with pytest.raises(FeatureError, match=r"damaged\.npy' is not a \.npy file of numbers"):
        read_input(path, 1)


@contextmanager
def piped(data: bytes) -> Iterator[Path]:
    """The name of a pipe that brings these bytes."""
    reading, writing = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield Path(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        thread.join(60)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system names no open files")
def test_a_pipe_brings_an_input(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array in (np.arange(60_000.0).reshape(3, -1), np.asfortranarray(np.eye(3, dtype=np.uint8)), np.float32(3)):
        np.save(path, array)
        with piped(path.read_bytes()) as pipe:
            found = read_input(pipe, array.ndim)
        np.testing.assert_array_equal(found, array[None])
        assert found.dtype == array.dtype


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system names no open files")
def test_a_pipe_that_brings_no_input_is_told_so(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    whole = (tmp_path / "one.npy").read_bytes()
    huge = whole.replace(b"(3,), ", b"(3000000000000,), ")
    several, objects = ((tmp_path / name).read_bytes() for name in ("several.npz", "objects.npy"))
    for data, told in (
        (whole[:-1], "not a .npy file of numbers"),
        (b"", "not a .npy file of numbers"),
        (b"text" * 100_000, "not a .npy file of numbers"),
        (several, "not a .npy file of numbers"),
        (huge, "not a .npy file of numbers"),
        (objects, "holds Python objects"),
    ):
        with piped(data) as pipe, pytest.raises(FeatureError, match=told):
            read_input(pipe, 1)
