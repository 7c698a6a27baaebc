"""A device's side of the wire in plain Python: no compoff, no numpy. docs/reference/wire-format.md explains every byte.

python examples/plain_client.py HOST:PORT ARTIFACT_ID PAYLOAD_FILE [TOKEN]
"""

import io
import math
import socket
import struct
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

HELLO, WELCOME, REQUEST, REPLY, ERROR = 1, 2, 3, 4, 5
TYPECODES = "efdBbhiq?"  # of the arrays in a reply, by their dtype code


def frame(kind: int, body: bytes, request_id: int = 0, deadline_ms: int = 0) -> bytes:
    data = struct.pack(">BBHII", kind, 0, deadline_ms, request_id, len(body)) + body
    return data + struct.pack(">I", zlib.crc32(data))


def hello(artifact_id: bytes, token: bytes) -> bytes:
    whole_reply = bytes(4)
    return frame(HELLO, b"COFF\x02\x01" + artifact_id + whole_reply + struct.pack(">H", len(token)) + token)


def receive(stream: BinaryIO, expected_kind: int, expected_id: int) -> bytes:
    header = stream.read(12)
    kind, _, _, request_id, length = struct.unpack(">BBHII", header)
    body = stream.read(length)
    if stream.read(4) != struct.pack(">I", zlib.crc32(header + body)):
        sys.exit("a frame arrived damaged")
    if kind == ERROR:
        sys.exit(f"the server refused, code {body[0]}: {body[1:].decode()}")
    if (kind, request_id) != (expected_kind, expected_id):
        sys.exit(f"a frame of kind {kind} came for request {request_id}")
    return body


def number(data: BinaryIO) -> int:
    value, shift, byte = 0, 0, 128
    while byte > 127:
        byte = data.read(1)[0]
        value, shift = value | (byte & 127) << shift, shift + 7
    return value


def array(data: BinaryIO) -> tuple[tuple[int, ...], list[float]]:
    code, dimensions = data.read(2)
    shape = tuple(number(data) for _ in range(dimensions))
    layout = struct.Struct(f"<{math.prod(shape)}{TYPECODES[code]}")
    return shape, list(layout.unpack(data.read(layout.size)))


def ask(address: str, artifact_id: bytes, payload: bytes, token: str = "") -> bytes:
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as sock, sock.makefile("rwb") as stream:
        stream.write(hello(artifact_id, token.encode()))
        stream.flush()
        receive(stream, WELCOME, 0)
        stream.write(frame(REQUEST, payload, request_id=1, deadline_ms=5000))
        stream.flush()
        return receive(stream, REPLY, 1)


if len(sys.argv) < 4:
    print(__doc__, "\nWithout them, this is the HELLO it would say:", hello(bytes(range(32)), b"secret").hex())
else:
    reply = ask(sys.argv[1], bytes.fromhex(sys.argv[2]), Path(sys.argv[3]).read_bytes(), *sys.argv[4:5])
    body = io.BytesIO(reply)
    print([array(body) for _ in range(number(body))])
