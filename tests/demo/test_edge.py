"""The second process: serves, ends with its parent, and says why it cannot start."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from compoff.demo.edge import edge_process
from compoff.demo.networks import DigitsNet
from compoff.demo.pictures import FORMS, Form, Pictures, encode_pixels
from compoff.demo.tasks import Task
from compoff.demo.whole import load_whole, picture_id, save_whole
from compoff.errors import ConnectionLost, ConnectTimeout, PayloadError, RemoteError
from compoff.wire.client import open_client
from compoff.wire.tensors import unpack

if TYPE_CHECKING:
    from pathlib import Path

PICTURES = Pictures((8, 8), (0.0,), (1.0,))


@pytest.fixture(scope="module")
def task() -> Task:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    inputs = torch.from_numpy(PICTURES.to_input(pixels))
    return Task(
        "digits", "", "", DigitsNet().eval(), inputs, inputs, torch.zeros(4, dtype=torch.int64), pixels, PICTURES
    )


@pytest.fixture(scope="module")
def saved(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """The folder of the whole network, and an id for each form."""
    folder = tmp_path_factory.mktemp("network")
    digest = save_whole(task, folder)
    return folder, [picture_id(form, digest) for form in FORMS]


@pytest.mark.parametrize("form", FORMS)
def test_whole_network_answers_as_it_does_here(form: Form, task: Task, saved: tuple[Path, list[bytes]]) -> None:
    folder, ids = saved
    tail = next(tail for tail in load_whole(folder) if tail.artifact_id == ids[FORMS.index(form)])
    data = encode_pixels(task.pixels[0], form, 95)
    assert len(data) <= tail.max_payload_bytes
    scores = torch.from_numpy(unpack(tail.answer(data))[0])
    with torch.inference_mode():
        expected = task.net(task.test[:1])
    torch.testing.assert_close(scores, expected, atol=1e-5 if form != "jpeg" else 0.5, rtol=1e-5)


def test_serves_until_the_block_ends(task: Task, saved: tuple[Path, list[bytes]]) -> None:
    folder, ids = saved
    with edge_process([folder]) as address, open_client(address, ids) as client:
        reply = unpack(client.request(encode_pixels(task.pixels[1], "png"), route=1))[0]
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(reply), task.net(task.test[1:2]), atol=1e-5, rtol=1e-5)
        with pytest.raises(PayloadError):
            client.request(b"no picture", route=2)
        assert client.idle_timeout > 86400, "the parent may compute for hours before its first picture"
    with pytest.raises((ConnectionLost, ConnectTimeout)):
        open_client(address, ids, connect_timeout=30.0)


def test_an_error_in_the_block_ends_the_process(saved: tuple[Path, list[bytes]]) -> None:
    folder, ids = saved
    with pytest.raises(KeyboardInterrupt), edge_process([folder]) as address:
        raise KeyboardInterrupt
    with pytest.raises((ConnectionLost, ConnectTimeout)):
        open_client(address, ids, connect_timeout=30.0)


PARENT = """
import sys, time
from pathlib import Path
from compoff.demo.edge import edge_process
with edge_process([Path(sys.argv[1])]) as address:
    print(address, flush=True)
    time.sleep(120)
"""


def test_dies_with_its_parent(saved: tuple[Path, list[bytes]]) -> None:
    folder, ids = saved
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        open_client(address, ids).close()
    finally:
        parent.kill()  # no chance to tidy up
        parent.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            open_client(address, ids, connect_timeout=5.0).close()
        except (ConnectionLost, ConnectTimeout):
            return
        time.sleep(0.1)
    pytest.fail("the second process still answers 60 s after its parent was killed")


def test_says_why_it_cannot_start(tmp_path: Path) -> None:
    with (
        pytest.raises(RemoteError, match=r"ended before it served.*not a folder"),
        edge_process([tmp_path / "nowhere"]),
    ):
        pytest.fail("the block must not run")


def test_start_has_a_deadline(saved: tuple[Path, list[bytes]]) -> None:
    folder, _ = saved
    begin = time.monotonic()
    with pytest.raises(ConnectTimeout, match=r"within 0\.01 s"), edge_process([folder], timeout=0.01):
        pytest.fail("the block must not run")
    assert time.monotonic() - begin < 60
