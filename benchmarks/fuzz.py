"""A million frames that no peer of ours would send, found by coverage: neither end may do anything but refuse them.

An input is a small program: it opens a conversation, then sends frames, right ones and wrong ones, whole and in pieces.
atheris changes the programs and keeps those that reach new code; the best of them lie in ``tests/wire/corpus.txt``,
and a test runs them all. Writes ``benchmarks/results/fuzz.json``; needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import record
from compoff.errors import CompoffError, FeatureError, WireError
from compoff.wire.client_protocol import ClientProtocol
from compoff.wire.frames import OVERHEAD_BYTES, Frame, FrameType, serialize
from compoff.wire.messages import MAX_HANDSHAKE_BYTES, ErrorCode, Hello, Offer, Route, Welcome, encode_error
from compoff.wire.protocol import Answer, Canceled, Request
from compoff.wire.replies import ReplyForm, ReplyKind
from compoff.wire.server_protocol import ServerProtocol
from compoff.wire.tensors import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "wire" / "corpus.txt"
ID = bytes(range(32))
OTHER = bytes(32)
LONGEST = 300  # bytes of a payload or a reply
WINDOW = 4
MOST_FRAMES = 24
HELLOS = (
    Hello((Offer(ID),), "secret"),
    Hello((Offer(ID), Offer(OTHER), Offer(ID, ReplyForm(ReplyKind.TOP_K, 1, 5))), "secret"),
    Hello((Offer(ID),), "wrong"),
    Hello((Offer(bytes([9]) * 32),), "secret"),
    Hello((Offer(ID, ReplyForm(ReplyKind.FP16)),), "secret"),
)


class Program:
    """An input, read from its front; zeros come after its end."""

    def __init__(self, data: bytes) -> None:
        """Start at the front."""
        self._data = data
        self._at = 0
        self._last_id = 0

    @property
    def over(self) -> bool:
        """Whether everything was read."""
        return self._at >= len(self._data)

    def next_id(self) -> int:
        """A request id that was not used yet, unless by chance."""
        self._last_id += 1
        return self._last_id

    def number(self, below: int) -> int:
        """A number from 0 on."""
        width = 1 if below <= 256 else 4
        return int.from_bytes(self.take(width), "little") % below

    def take(self, count: int) -> bytes:
        """Some bytes."""
        found = self._data[self._at : self._at + count]
        self._at += count
        return found.ljust(count, b"\0")


def _frame(program: Program, usual: FrameType, bodies: Sequence[bytes]) -> bytes:
    """The next frame that a program sends: mostly with a right checksum, or else damaged in some way."""
    kind = program.number(24)
    kind = kind if kind < 12 else usual
    body = program.take(program.number(48))
    if program.number(3) == 0:
        body = bodies[program.number(len(bodies))]
        if program.number(4) == 0 and body:
            place = program.number(len(body))
            body = body[:place] + program.take(1) + body[place + 1 :]
    length = program.number(2**32) if program.number(8) == 1 else len(body)
    route = program.number(4) if program.number(6) == 1 else 0
    request_id = program.number(8) if program.number(6) == 1 else program.next_id()
    header = bytes([kind, route]) + program.take(2) + request_id.to_bytes(4, "big")
    covered = header + length.to_bytes(4, "big") + body
    whole = covered + zlib.crc32(covered).to_bytes(4, "big")
    damage = program.number(16)
    if damage == 1:
        return whole[: program.number(len(whole) + 1)]
    if damage == 2:
        return program.take(program.number(40))
    return whole


def _pieces(program: Program, data: bytes) -> list[bytes]:
    if program.number(4) != 1:
        return [data]
    cut = program.number(len(data) + 1)
    return [data[:cut], data[cut:]]


def _check_reply(artifact_id: bytes, reply: ReplyForm) -> None:
    if reply.kind is ReplyKind.FP16:
        raise FeatureError("not in this form")


def play_to_server(program: Program) -> int:
    """Send a program's frames to a server's end, which answers what it takes; return their number."""
    server = ServerProtocol({ID: LONGEST, OTHER: 10}, token="secret", window=WINDOW, check_reply=_check_reply)
    bodies = [bytes(LONGEST), bytes(LONGEST + 1), *(hello.encode() for hello in HELLOS)]
    start = serialize(Frame(FrameType.HELLO, HELLOS[program.number(len(HELLOS))].encode()))
    frames = [] if program.number(8) == 1 else [start]
    waiting: list[int] = []
    count = 0
    try:
        while count < MOST_FRAMES and not (program.over and not frames):
            for piece in _pieces(program, frames.pop() if frames else _frame(program, FrameType.REQUEST, bodies)):
                for event in server.receive_data(piece):
                    if isinstance(event, Request):
                        assert server.opened
                        assert len(event.body) <= (LONGEST if event.artifact_id == ID else 10)
                        waiting.append(event.request_id)
                    elif isinstance(event, Canceled):
                        assert event.request_id in waiting
                assert server.in_flight == len(waiting) <= WINDOW
                assert server.buffered <= OVERHEAD_BYTES + (LONGEST if server.opened else MAX_HANDSHAKE_BYTES)
            count += 1
            while waiting and program.number(2):
                server.send_reply(waiting.pop(program.number(len(waiting))), b"answer")
    except WireError:
        assert server.closing
    assert len(server.data_to_send()) < 40_000, "what it answers is bounded, too"
    return count + 1


def play_to_client(program: Program) -> int:
    """Send a program's frames to a client's end that has asked a few things; return their number."""
    client = ClientProtocol([ID], max_reply_bytes=LONGEST)
    welcome = Welcome(WINDOW, (Route(0, 100),), 1000).encode()
    arrays = pack([])
    bodies = [welcome, encode_error(ErrorCode.BUSY, "no room"), arrays, bytes(LONGEST), bytes(LONGEST + 1)]
    frames = [serialize(Frame(FrameType.WELCOME, welcome))] if program.number(8) != 1 else []
    asked: set[int] = set()
    count = 0
    try:
        while count < MOST_FRAMES and not (program.over and not frames):
            for piece in _pieces(program, frames.pop() if frames else _frame(program, FrameType.REPLY, bodies)):
                for event in client.receive_data(piece):
                    if isinstance(event, Answer):
                        assert event.request_id in asked
                        asked.remove(event.request_id)
                        assert len(event.body) <= LONGEST
                        _unpack(event.body)
            count += 1
            if client.opened and not client.closing and len(asked) < WINDOW - 1 and program.number(2):
                asked.add(client.send_request(b"payload"))
    except WireError:
        pass
    return count + 1


def _unpack(body: bytes) -> None:
    try:
        unpack(body)
    except CompoffError:
        return


def play(data: bytes) -> int:
    """Run one input against one of the ends; return the number of frames sent to it."""
    program = Program(data)
    return (play_to_client if program.number(4) == 0 else play_to_server)(program)


def fuzz(folder: Path, frames: int) -> None:
    """Let atheris make inputs until enough frames are sent; writes the number of them and of inputs to the folder."""
    import atheris

    inputs = sent = 0

    def one_input(data: bytes) -> None:
        nonlocal inputs, sent
        sent += play(data)
        inputs += 1
        if sent >= frames:
            (folder / "counts").write_text(f"{inputs} {sent}")
            os._exit(0)  # libFuzzer has no other way to stop after so many frames

    for function in (play_to_server, play_to_client, *_functions_of_the_wire()):
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], "-max_len=1024", "-verbosity=0", "-seed=1", str(folder / "corpus")], one_input)
    atheris.Fuzz()


def _functions_of_the_wire() -> list[Any]:
    from compoff.wire import frames, messages, protocol, replies, tensors

    classes = (ServerProtocol, ClientProtocol, protocol.Conversation, frames.FrameParser, Hello, Welcome, ReplyForm)
    found: list[Any] = [messages.decode_error, messages.one_line, replies.reply_form, tensors.unpack]
    for cls in classes:
        found += [value for value in vars(cls).values() if callable(value) and hasattr(value, "__code__")]
        found += [value.__func__ for value in vars(cls).values() if isinstance(value, classmethod)]
    return found


def main() -> None:
    """Fuzz in a process of its own, keep the corpus, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        fuzz(options.inside, options.frames)
        return
    kept = [bytes.fromhex(line) for line in CORPUS.read_text().split()] if CORPUS.exists() else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for index, data in enumerate(kept):
            (folder / "corpus" / str(index)).write_bytes(data)
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.fuzz", "--frames", str(options.frames), "--inside", name]
        done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        if done.returncode != 0:
            raise SystemExit(f"an input broke a rule; see above ({done.returncode})")
        seconds = time.perf_counter() - start
        inputs, frames = map(int, (folder / "counts").read_text().split())
        found = {path.read_bytes() for path in (folder / "corpus").iterdir()}
    CORPUS.write_text("".join(data.hex() + "\n" for data in sorted(found, key=lambda data: (len(data), data))))
    row = {"frames": frames, "inputs": inputs, "corpus": len(found), "seconds": round(seconds, 1)}
    print(row)
    print(f"wrote {record('fuzz', [row], seed=1, command=f'python -m benchmarks.fuzz --frames {options.frames}').name}")


if __name__ == "__main__":
    main()
