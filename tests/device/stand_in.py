"""A head that takes no model, and a tail that takes its time: for tests of everything between them."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from compoff.coding import Payload
from compoff.manifest import Manifest, TensorSpec
from compoff.wire.tensors import pack

ID = bytes(range(32))
ANSWER = pack([np.arange(3, dtype=np.float32)[None]])
HELD = np.array([255], np.uint8)


class StandIn:
    """A head whose payload is what it is called with, after some seconds."""

    artifact_id = ID
    split = "input"
    runner = None

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        outputs = (TensorSpec((3,), "float32"),)
        self.manifest = Manifest("head", ID.hex(), "input", "Net", (), outputs, {"leaf": 0}, (), (), max_batch=4)

    def __call__(self, word: np.ndarray[Any, Any], quality: int | None = None) -> Payload:
        time.sleep(self.seconds)
        return Payload(word.tobytes(), ID, 0, 1)

    def check(self, word: np.ndarray[Any, Any], quality: int | None = None, **keywords: Any) -> None:
        """Takes everything."""


class Tail:
    """Answers after as many milliseconds as the payload's first byte says, times ten; `HELD` when the gate is open."""

    artifact_id = ID
    max_payload_bytes = 100

    def __init__(self) -> None:
        self.gate = threading.Event()

    def answer(self, payload: bytes) -> bytes:
        if payload[0] == HELD[0]:
            self.gate.wait(30)
        else:
            time.sleep(payload[0] / 100)
        return ANSWER


def after(hundredths: int) -> np.ndarray[Any, Any]:
    return np.array([hundredths], np.uint8)
