"""What every test shares: repeatable random numbers, an order that ends soon, and the real data where it is there."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# One thread a process, set before torch is loaded: the tests' tensors are small, the workers of pytest-xdist share the
# cores already, and threads of OpenMP that wait for a busy core spin and make everything many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The million objects of torch again, in processes that tests start: `sitecustomize.py` there says how.
_CHILDREN = str(Path(__file__).with_name("children"))
if _CHILDREN not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join([_CHILDREN, *filter(None, [os.environ.get("PYTHONPATH")])])

# A deadline for an example would measure how busy the machine is; on a build server the examples are always the same.
hypothesis.settings.register_profile("compoff", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("compoff")

# Files that take longest, though some have few tests. They go first: begun last, one would end long after the others.
_LONG = (
    "test_examples.py",
    "operations/test_run.py",
    "test_notebooks.py",
    "zoo/test_shipping.py",
    "test_wide_tiles.py",
    "edge/test_engines.py",
    "test_cli.py",
    "demo/test_run.py",
    "edge/test_tensorrt.py",
    "device/test_remote.py",
    "demo/test_edge.py",
    "zoo/test_architectures.py",
    "training/test_compile.py",
    "edge/test_module_backend.py",
    "benchmarks/test_faults.py",
    "device/test_head.py",
    "device/test_onnx_head.py",
    "cutting/test_proof.py",
    "test_exporting.py",
    "fitting/test_fit.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"tests/{name}": index for index, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(_LONG)))


def pytest_collection_finish() -> None:
    # A million objects of torch and of pytest live to the end; to look through them again and again takes an export a
    # third longer. So what exports import is imported before, and the rest is looked through less often.
    if "torch" in sys.modules:
        importlib.import_module("torch.export.pt2_archive")
        _list_operators_once()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _list_operators_once() -> None:
    # The operators that ONNX has a translation for: an export reads the sources of 500 functions anew for their list,
    # which takes longer than the rest of it. The list is only gone through.
    with contextlib.suppress(ImportError):
        apis = importlib.import_module("torch.onnx._internal._lazy_import").onnxscript_apis
        apis.get_torchlib_ops = functools.cache(lambda: type(apis).__getattr__(apis, "get_torchlib_ops")())


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch = sys.modules.get("torch")  # a test that needs no torch does not pay for it
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    # A command that runs in this process sends its logs elsewhere for good; the tests behind it look for theirs.
    logger = logging.getLogger("compoff")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data") and not os.environ.get("COMPOFF_DATA"):
        pytest.skip("needs real data: set COMPOFF_DATA to the folder of data and weights")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data and weights; only for tests that carry the marker ``data``."""
    return Path(os.environ["COMPOFF_DATA"])
