"""Times the coders and weighs their bytes against the cross-entropy: ``python -m benchmarks.coding``.

Symbols are drawn from the tables that code them, so the cross-entropy is the least that any coder can reach on average.
Two layouts of 12,544 symbols have limits to keep: 0.25 ms to encode and 0.5 ms to decode, median, with constriction.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.record import record
from compoff.coding import Code, PayloadFormat, SymbolTables, huffman, packing, range_coder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SEED = 20
_COMMAND = "python -m benchmarks.coding"
_ENCODE_LIMIT_MS, _DECODE_LIMIT_MS = 0.25, 0.5
_TIMED_SYMBOLS = 12_544


class Case(NamedTuple):
    """One layout of symbols; ``concentration`` of the Dirichlet law: the lower, the more peaked the tables."""

    channels: int
    positions: int
    num_symbols: int
    concentration: float


CASES = [
    Case(4, 3136, 16, 0.5),
    Case(64, 196, 16, 0.5),
    Case(4, 3136, 16, 0.05),
    Case(64, 196, 16, 0.05),
    Case(64, 196, 64, 0.5),
    Case(64, 64, 16, 0.5),
    Case(64, 16, 16, 0.5),
    Case(16, 64, 8, 0.05),
    Case(512, 1, 16, 0.5),
    Case(1, 64, 4, 0.5),
]


def main() -> None:
    """Measure every case, print a table and write ``benchmarks/results/coding.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=300, help="timed calls of each fast function")
    repeats = parser.parse_args().repeats
    generator = np.random.default_rng(_SEED)
    rows = [row for case in CASES for row in measure(case, repeats, generator)]
    for row in rows:
        print(
            f"{row['channels']:4d} x {row['positions']:<5d} K={row['num_symbols']:<3d} {row['coder']:20s}"
            f" encode {row['encode_ms']:8.4f} ms  decode {row['decode_ms']:8.4f} ms"
            f"  {row['bytes']:8.1f} B, cross-entropy {row['cross_entropy_bytes']:8.1f} B"
            f"{'' if row['within_limits'] is None else '  within limits' if row['within_limits'] else '  OVER LIMIT'}"
        )
    print(record("coding", rows, seed=_SEED, command=_COMMAND).name)


def measure(case: Case, repeats: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    """Measure every coder on one layout; bytes are means over 20 messages, times are of the first of them."""
    tables = SymbolTables.from_probabilities(
        generator.dirichlet(np.full(case.num_symbols, case.concentration), case.channels) + 1e-6
    )
    messages = [draw(tables, case.positions, generator) for _ in range(20)]
    entropy = statistics.fmean(tables.cross_entropy(message) / 8 for message in messages)
    rows: list[dict[str, Any]] = []
    for coder, (encode, decode, calls) in coders(case, tables, repeats).items():
        encoded = [encode(message) for message in messages]
        times = median_ms(encode, messages[0], calls), median_ms(decode, encoded[0], calls)
        rows.append(
            {
                **case._asdict(),
                "coder": coder,
                "encode_ms": times[0],
                "decode_ms": times[1],
                "bytes": statistics.fmean(map(len, encoded)),
                "cross_entropy_bytes": round(entropy, 2),
                "within_limits": within_limits(case, coder, *times),
            }
        )
    return rows


def coders(
    case: Case, tables: SymbolTables, repeats: int
) -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], int]]:
    """Name each coder, with its encoder, its decoder and how often to time them."""
    count, slow = case.channels * case.positions, max(5, repeats // 20)
    space = (case.channels, case.positions)
    payloads = PayloadFormat(bytes(32), [Code(tables, space)])
    return {
        "range": (
            lambda symbols: range_coder.encode(symbols, tables),
            lambda data: range_coder.decode(data, tables, case.positions),
            repeats,
        ),
        "range, pure Python": (
            lambda symbols: range_coder.encode_python(symbols, tables),
            lambda data: range_coder.decode_python(data, tables, case.positions),
            slow,
        ),
        "huffman": (
            lambda symbols: huffman.encode(symbols, tables),
            lambda data: huffman.decode(data, tables, case.positions),
            slow,
        ),
        "raw": (
            lambda symbols: packing.pack(symbols, case.num_symbols),
            lambda data: packing.unpack(data, count, case.num_symbols),
            repeats,
        ),
        "whole payload, range": (
            lambda symbols: payloads.encode([symbols[None]]),
            payloads.decode,
            repeats,
        ),
    }


def draw(tables: SymbolTables, positions: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw symbols from their tables, as a head hands them over: bytes, channel by channel."""
    rows = [generator.choice(tables.num_symbols, positions, p=row / row.sum()) for row in tables.weights]
    return np.stack(rows).astype(np.uint8)


def median_ms(function: Callable[[Any], object], argument: object, repeats: int) -> float:
    """Call a function a few times to warm up, then often, and return its median time in milliseconds."""
    for _ in range(3):
        function(argument)
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(argument)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 4)


def within_limits(case: Case, coder: str, encode_ms: float, decode_ms: float) -> bool | None:
    """Judge the cases that have a limit; None for the others."""
    if coder != "range" or case.channels * case.positions != _TIMED_SYMBOLS or case.num_symbols != 16:
        return None
    return encode_ms <= _ENCODE_LIMIT_MS and decode_ms <= _DECODE_LIMIT_MS


if __name__ == "__main__":
    main()
