"""The bytes of docs/reference/wire-format.md: both ends say them, a real server, and the client in plain Python."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import zlib
from ast import literal_eval
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from compoff.edge.server import serve
from compoff.errors import PayloadError
from compoff.manifest import TensorSpec
from compoff.wire.client_protocol import ClientProtocol
from compoff.wire.frames import FrameType
from compoff.wire.messages import MAX_HANDSHAKE_BYTES, PROTOCOL_VERSION, ErrorCode, Offer
from compoff.wire.protocol import Answer, Canceled, Closing, Opened, Refusal, Request
from compoff.wire.replies import TopK, reduce_reply, reply_form
from compoff.wire.server_protocol import ServerProtocol
from compoff.wire.tensors import pack, unpack
from tests.edge.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "reference" / "wire-format.md").read_text()
ID = bytes(range(32))
LOGITS = np.array([[0.25, 3.0, 2.0]], np.float32)


def conversation() -> list[tuple[str, bytes]]:
    """The frames of the page with who sends each."""
    turns: list[tuple[str, bytes]] = []
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL):
        for sender, text in re.findall(r"^([<>]) (.*?)(?=^[<>]|\Z)", block, re.DOTALL | re.MULTILINE):
            turns.append((sender, bytes.fromhex("".join(text.split()))))
    return turns


def expect(turn: tuple[str, bytes], sender: str, data: bytes) -> None:
    assert turn == (sender, data)


def test_both_ends_say_what_the_page_says() -> None:
    turns = iter(conversation())
    top = reply_form(TopK(2))
    client = ClientProtocol([Offer(ID), Offer(ID, top)], token="secret")
    server = ServerProtocol(
        {ID: 4000}, token="secret", idle_timeout=300.0, check_reply=lambda *_: None, expected_wait=lambda: 0.002
    )

    def asks() -> list[object]:
        data = client.data_to_send()
        expect(next(turns), ">", data)
        return list(server.receive_data(data))

    def answers() -> list[object]:
        data = server.data_to_send()
        expect(next(turns), "<", data)
        return list(client.receive_data(data))

    assert (asks(), answers()) == ([Opened(16)], [Opened(16)])
    client.send_request(b"payload", deadline_ms=50)
    assert asks() == [Request(1, ID, b"payload", 50)]
    server.send_reply(1, pack([LOGITS]), 0.004)
    assert answers() == [Answer(1, pack([LOGITS]), 0.004)]
    client.send_request(b"payload", route=1)
    assert asks() == [Request(2, ID, b"payload", 0, top)]
    server.send_reply(2, pack(reduce_reply(top, [LOGITS])), 0.004)
    [answer] = answers()
    assert isinstance(answer, Answer)
    assert [array.tolist() for array in unpack(answer.body)] == [[[3.0, 2.0]], [[1, 2]]]
    client.send_request(b"damaged", deadline_ms=50)
    asks()
    server.send_error(3, ErrorCode.PAYLOAD, "the checksum does not match")
    [refusal] = answers()
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, PayloadError)
    client.send_ping()
    assert asks() == []
    assert answers() == [Answer(4, b"", 0.002)]
    client.send_request(b"payload")
    asks()
    client.send_cancel(5)
    assert asks() == [Canceled(5)]
    server.send_error(5, ErrorCode.CANCELED, "nobody waited for the answer any more")
    assert answers() == []
    server.send_goodbye()
    assert answers() == [Closing()]
    assert next(turns, None) is None


class Golden:
    """Answers as the tail of the page does."""

    artifact_id = ID
    max_payload_bytes = 4000
    max_batch = 8
    outputs = (TensorSpec((3,), "float32"),)

    def __init__(self) -> None:
        self.busy = threading.Event()
        self.go_on = threading.Event()

    def answer(self, payload: bytes) -> bytes:
        raise AssertionError("never asked like this")

    def decode(self, payload: bytes) -> bytes:
        if payload == b"damaged":
            raise PayloadError("the checksum does not match")
        return payload[:1]

    def run(self, decoded: Sequence[bytes]) -> list[list[np.ndarray]]:
        return [[LOGITS] for _ in decoded]


def test_a_real_server_says_it_too() -> None:
    turns = conversation()
    # Two requests of the page are answered differently by a server at leisure: it has nothing to cancel, and goes on.
    bounds = next(index for index, (_, data) in enumerate(turns) if data[:8].hex() == "0300000000000005")
    with serve(Golden(), token="secret") as server, Peer(server, b"") as peer:
        for sender, data in turns[:bounds]:
            if sender == ">":
                peer.send(data)
                continue
            frame = peer.read()
            assert frame is not None
            kind, request_id = data[0], int.from_bytes(data[4:8], "big")
            assert (frame.type, frame.request_id) == (kind, request_id)
            body = data[12:-4]
            assert frame.body == body or frame.type is FrameType.WELCOME
            if frame.type is FrameType.WELCOME:
                longest = (4000).to_bytes(4, "big")
                assert (frame.body, body.count(longest)) == (body, 2)


def test_every_frame_of_the_page_is_16_bytes_longer_than_its_body() -> None:
    for _, data in conversation():
        assert len(data) == 16 + int.from_bytes(data[8:12], "big")
        assert data[-4:] == zlib.crc32(data[:-4]).to_bytes(4, "big")


@pytest.mark.parametrize("kinds", [FrameType, ErrorCode])
def test_the_page_names_every_number(kinds: type[FrameType] | type[ErrorCode]) -> None:
    for kind in kinds:
        assert re.search(rf"^\| {kind.value} \| {kind.name} \|", PAGE, re.MULTILINE), kind
    assert f"protocol version {PROTOCOL_VERSION}" in PAGE
    assert f"at most {MAX_HANDSHAKE_BYTES:,} bytes" in PAGE


def ask_in_plain_python(address: str, payload: Path, *token: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "examples" / "plain_client.py"
    command = [sys.executable, "-I", "-S", str(script), address, ID.hex(), str(payload), *token]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_client_in_plain_python(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"payload")
    with serve(Golden(), token="secret") as server:
        done = ask_in_plain_python(server.address, payload, "secret")
        assert done.returncode == 0, done.stderr
        assert literal_eval(done.stdout) == [((1, 3), [0.25, 3.0, 2.0])]
        refused = ask_in_plain_python(server.address, payload, "wrong")
        assert (refused.returncode, refused.stderr.strip()) == (1, "the server refused, code 3: the token is wrong")
        payload.write_bytes(b"damaged")
        assert "code 5: the checksum does not match" in ask_in_plain_python(server.address, payload, "secret").stderr
