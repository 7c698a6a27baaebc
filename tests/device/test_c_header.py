"""The C example, compiled: the payloads and frames of Python, byte for byte."""

from __future__ import annotations

import functools
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from compoff.cli import app
from compoff.coding import Side, SymbolTables
from compoff.coding.payload import PayloadFormat
from compoff.device.c_header import c_header
from compoff.errors import BackendError, FeatureError
from compoff.manifest import CodeSpec, Manifest
from tests.golden_head import GOLDEN, golden_head, golden_inputs, golden_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

EXAMPLE = Path(__file__).parents[2] / "examples" / "c" / "device.c"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O1")

MANY = """
#define COMPOFF_NO_MAIN
#include "device.c"

/* Batches of the size that is given, one after another, to payloads in hexadecimal digits, a line each. */
int main(int count, char **arguments)
{
    static uint8_t symbols[COMPOFF_MAX_BATCH * LATENT], out[COMPOFF_MAX_PAYLOAD(COMPOFF_MAX_BATCH)];
    size_t batch = (size_t)(arguments[count - 1][0] - '0');
    while (fread(symbols, 1, batch * LATENT, stdin) == batch * LATENT) {
        size_t length = compoff_payload(out, symbols, batch);
        for (size_t i = 0; i < length; i++) printf("%02x", out[i]);
        printf("\\n");
    }
    return 0;
}
"""


@functools.cache
def sanitizers() -> tuple[str, ...]:
    """What finds undefined behaviour while a program runs, where the compiler has it."""
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    command = [str(COMPILER), *flags, "-x", "c", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input="int main(void) { return 0; }", text=True, capture_output=True, check=False)
    return flags if done.returncode == 0 else ()


def compiled(folder: Path, header: str, source: str | None = None) -> Path:
    (folder / "compoff_export.h").write_text(header)
    (folder / "device.c").write_text(EXAMPLE.read_text())
    if source is not None:
        (folder / "main.c").write_text(source)
    program = folder / "program"
    main = folder / ("device.c" if source is None else "main.c")
    unused = () if source is None else ("-Wno-unused-function",)
    command = [str(COMPILER), *STRICT, *unused, *sanitizers(), str(main), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return program


def payloads_of(program: Path, symbols: NDArray[np.uint8], batch: int) -> list[str]:
    done = subprocess.run([program, str(batch)], input=symbols.tobytes(), capture_output=True, timeout=60, check=True)
    return done.stdout.decode().splitlines()


def manifest(code: CodeSpec) -> Manifest:
    return Manifest("head", "0123456789abcdef" * 4, "*/ layer", "N?et", (), (), {}, (code,), (), max_batch=9)


@pytest.fixture(scope="module")
def golden_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    golden_head().save(folder / "head")
    return folder


@needs_compiler
def test_golden_payloads_in_c(tmp_path: Path) -> None:
    head = golden_head()
    program = compiled(tmp_path, head.c_header(), MANY)
    for batch in (1, 3):
        (symbols,) = head.symbols(golden_inputs(batch))
        assert payloads_of(program, symbols, batch) == [GOLDEN["range"][batch]]


TABLES = {
    "even": [[1.0] * 8] * 3,
    "peaked": [[1e9, *[1.0] * 7], [1.0, 1e9, *[1.0] * 6], [1.0] * 7 + [1e9]],
    "two": [[1.0, 1.0], [1e12, 1.0], [1.0, 1e12]],
    "many": [[0.8 ** abs(index - 127) for index in range(255)]] * 3,
    "all": [[0.9 ** abs(index - 127) for index in range(256)]] * 3,
}


@needs_compiler
@pytest.mark.parametrize(
    ("name", "qualities", "steps"),
    [("even", (3,), ()), ("peaked", (2, 3), ()), ("two", (3,), ()), ("many", (2, 3), (5, 1)), ("all", (3,), ())],
)
def test_any_symbols_give_pythons_bytes(
    tmp_path: Path, name: str, qualities: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    tables = [SymbolTables.from_probabilities(TABLES[name])]
    described = manifest(CodeSpec((3, 2, 5), tables[0].num_symbols, qualities, steps))
    payloads = described.payload_format(tables)
    rng = np.random.default_rng(0)
    for quality in range(len(qualities)):
        program = compiled(tmp_path, c_header(described, payloads, quality), MANY)
        for batch in (1, 4):
            symbols = likely(rng, tables[0], 200, batch)
            expected = [
                bytes(payloads.encode([payloads.codes[0].sent(one, quality)], quality=quality)).hex() for one in symbols
            ]
            assert payloads_of(program, symbols, batch) == expected
            assert {text[1] for text in expected} <= {"0", "1"}


def likely(rng: np.random.Generator, tables: SymbolTables, messages: int, batch: int) -> NDArray[np.uint8]:
    """Messages, some of them likely under the tables and some not, so that both raw and range coding are met."""
    shape = (messages, batch, 3, 10)
    symbols = rng.integers(0, tables.num_symbols, shape)
    best = tables.weights.argmax(axis=1)[:, None]
    usual = rng.random(shape) < rng.choice([0.0, 0.5, 0.9, 0.99, 1.0], (messages, 1, 1, 1))
    return np.where(usual, best, symbols).astype(np.uint8).reshape(messages, batch, 3, 2, 5)


@needs_compiler
def test_a_symbol_out_of_range_gives_nothing(tmp_path: Path) -> None:
    program = compiled(tmp_path, golden_head().c_header(quality=0), MANY)
    assert payloads_of(program, np.full(64, 5, np.uint8), 1) == [""]


@needs_compiler
def test_a_microcontroller_asks_a_real_server(golden_folder: Path, tmp_path: Path) -> None:
    header = tmp_path / "compoff_export.h"
    done = CliRunner().invoke(app, ["export-c", str(golden_folder), "--output", str(header)])
    assert done.exit_code == 0, done.output
    program = compiled(tmp_path, header.read_text())
    head, tail = golden_head(), golden_tail()
    hello = subprocess.run([program, "hello"], capture_output=True, timeout=60, check=True).stdout
    (symbols,) = head.symbols(golden_inputs(1))
    arguments: Any = {"input": symbols.tobytes(), "capture_output": True, "timeout": 60, "check": True}
    request = subprocess.run([program, "request"], **arguments).stdout
    assert request[12:-4].hex() == GOLDEN["range"][1]
    with tail.serve("127.0.0.1:0") as server:
        host, port = server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(hello + request)
            answers = frames(connection, 2)
    assert [kind for kind, _ in answers] == [2, 4]
    expected = tail(head(golden_inputs(1)))["sums"].numpy()
    assert answers[1][1].endswith(expected.tobytes())


def frames(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Types and bodies of the next frames, by an independent reading of the format."""
    with connection.makefile("rb") as stream:
        found: list[tuple[int, bytes]] = []
        for _ in range(count):
            begin = stream.read(12)
            body = stream.read(int.from_bytes(begin[8:], "big"))
            stream.read(4)
            found.append((begin[0], body))
        return found


@needs_compiler
def test_the_example_refuses_too_few_symbols(tmp_path: Path) -> None:
    program = compiled(tmp_path, golden_head().c_header())
    done = subprocess.run([program, "request"], input=b"\0" * 63, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"usage" in done.stderr


def test_only_one_code_and_no_side_tensor() -> None:
    tables = SymbolTables([[2**23, 2**23]])
    described = manifest(CodeSpec((1, 9), 2, (1,)))
    code = described.payload_format([tables]).codes[0]
    for codes, sides in (([code, code], []), ([code], [Side((1,), "bool")])):
        parts: tuple[Sequence[Any], Sequence[Any]] = (codes, sides)
        with pytest.raises(BackendError, match="for one feature and no side tensor"):
            c_header(described, PayloadFormat(described.identity, *parts), 0)
    with pytest.raises(FeatureError, match="no quality 1"):
        c_header(described, described.payload_format([tables]), 1)


def test_names_cannot_end_a_comment() -> None:
    described = manifest(CodeSpec((1, 9), 2, (1,)))
    header = c_header(described, described.payload_format([SymbolTables([[2**23, 2**23]])]), 0)
    assert header.splitlines()[0].count("*/") == 1
    assert "?" not in header
