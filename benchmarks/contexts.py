"""What context models save and cost, and what their parts are worth, on the same symbols of one calibrated codec.

    python -m benchmarks.contexts --split input --data DATA

The codec is started from photos but not trained: nothing of it changes from row to row. Models are fitted to photos and
measured on validation images. Times take turns, in a new order each round.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
import torch

import compoff
from benchmarks.behind import Before, Behind
from benchmarks.networks import data_folder
from benchmarks.record import record
from benchmarks.tasks import CLASSIFIERS, load_task
from compoff.batch import Batch
from compoff.codec import code_of
from compoff.coding import Code, PayloadFormat
from compoff.fitting.contexts import fit_contexts
from compoff.fitting.measure import count_symbols

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_QUALITIES = (0, 5, 10)
_FITTING = "compoff.fitting.contexts."
# What is changed of the modules' own numbers while models are fitted and used.
_VARIATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no channels lead": {_FITTING + "_LEAST_LED": 1.0},
    "4 channels lead": {_FITTING + "_LEADING": 4},
    "8 tables": {_FITTING + "_NUM_TABLES": 8},
    "32 tables": {_FITTING + "_NUM_TABLES": 32},
    "groups of an eighth of the channels before": {"compoff.coding.sums._GROUP": 8},
    "every channel by itself": {"compoff.coding.sums._GROUP": 1 << 20},
}


class Way(NamedTuple):
    """One way to code.

    Args:
        payloads: The format, its models fitted.
        coding: How it codes.
        changes: What is patched meanwhile.
    """

    payloads: PayloadFormat
    coding: compoff.Coding
    changes: dict[str, Any]

    def bytes(self, sent: NDArray[np.uint8], quality: int) -> float:
        """Mean length of a sample's payload."""
        with patched(self.changes):
            payloads = [self.payloads.encode([one[None]], quality=quality, coding=self.coding) for one in sent]
        return float(np.mean([len(payload) for payload in payloads]))

    def times(self, sent: NDArray[np.uint8], quality: int) -> tuple[float, float]:
        """Seconds to encode one sample, and to decode it."""
        with patched(self.changes):
            start = time.perf_counter()
            payload = self.payloads.encode([sent], quality=quality, coding=self.coding)
            between = time.perf_counter()
            self.payloads.decode(payload)
            return between - start, time.perf_counter() - between


@contextlib.contextmanager
def patched(changes: dict[str, Any]) -> Iterator[None]:
    """All changes at once."""
    with contextlib.ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(mock.patch(name, value))
        yield


def symbols_of(options: argparse.Namespace) -> tuple[Code, NDArray[np.uint8], NDArray[np.uint8]]:
    """A calibrated codec, and its symbols of photos and of validation images."""
    task = load_task(options.model, data_folder(options.data), batch=16, limit=options.images)
    torch.manual_seed(0)
    photos = itertools.islice(itertools.chain.from_iterable(itertools.repeat(task.train)), options.photos // 16)
    before = Before(task.net, options.split).eval()
    with torch.inference_mode():
        seen, fresh = ([before(batch).clone() for batch in batches] for batches in (photos, task.test.split(16)))
    model = compoff.wrap(Behind(task.net, options.split).eval(), "input", example_input=fresh[0][:2])
    compoff.calibrate(model, seen, target_bytes=options.target_bytes)
    count_symbols(model, "input", [Batch((batch,)) for batch in seen])
    bottleneck = model.bottleneck("input")
    with torch.inference_mode():
        found = (torch.cat([bottleneck.encode(batch) for batch in batches]).numpy() for batches in (seen, fresh))
    return code_of(bottleneck), *found


def ways_of(code: Code, symbols: NDArray[np.uint8]) -> dict[str, Way]:
    """Each way to code, its models fitted to the symbols."""
    plain = PayloadFormat(bytes(32), [Code(code.tables, code.latent_shape, code.qualities, code.steps, ())])
    ways = {"without context models": Way(plain, "static", {})}
    for name, changes in _VARIATIONS.items():
        with patched(changes):
            models = fit_contexts(symbols, code)
        if models:
            coded = Code(code.tables, code.latent_shape, code.qualities, code.steps, models)
            ways[name] = Way(PayloadFormat(bytes(32), [coded]), "range", changes)
    return ways


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", choices=CLASSIFIERS)
    parser.add_argument("--split", default="input")
    parser.add_argument("--photos", type=int, default=192, help="to start the codec from, and to fit the models to")
    parser.add_argument("--images", type=int, default=100, help="to measure on")
    parser.add_argument("--rounds", type=int, default=60, help="of timing")
    parser.add_argument("--target-bytes", type=float, default=4000.0)
    parser.add_argument("--data", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    code, seen, fresh = symbols_of(options)
    ways, order = ways_of(code, seen), random.Random(0)
    rows: list[dict[str, Any]] = []
    for quality in _QUALITIES:
        sent, times = code.sent(fresh, quality), {name: list[tuple[float, float]]() for name in ways}
        for _ in range(options.rounds):
            for name in order.sample([*ways], len(ways)):
                times[name].append(ways[name].times(sent[:1], quality))
        for name, way in ways.items():
            encode, decode = (1000 * float(number) for number in np.median(times[name], axis=0))
            row = {"variation": name, "quality": quality, "bytes": way.bytes(sent, quality)}
            rows.append({**row, "encode_ms": encode, "decode_ms": decode})
            print(rows[-1], flush=True)
    command = f"python -m benchmarks.contexts {' '.join(sys.argv[1:]).replace(str(options.data), 'DATA')}".strip()
    print(record(f"contexts.{options.model}.{options.split}", rows, seed=0, command=command))


if __name__ == "__main__":
    main()
