"""Head and tail in two processes: export, save, serve in a child process, call over a socket.

python examples/device_and_edge.py
"""

import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import compoff
from compoff.demo.networks import DigitsNet


def edge(folder: Path, pipe: Connection) -> None:
    """What runs on the edge: it needs the folder, not the model's class."""
    with compoff.Tail.load(folder).serve("127.0.0.1:0", token="a long random string") as server:
        pipe.send(server.address)
        pipe.recv()


def device(folder: Path, address: str, x: torch.Tensor) -> torch.Tensor:
    """What runs on the device."""
    head = compoff.Head.load(folder)
    with head.connect(address, token="a long random string", timeout=30) as remote:
        y = remote(x)
        print(remote.last)
    return y


def main() -> None:
    """Play both."""
    torch.manual_seed(0)
    x = torch.rand(3, 1, 8, 8)
    model = compoff.wrap(DigitsNet().eval(), "layer2", example_input=x)
    compoff.fit(model, [x], steps=5)
    head, tail = compoff.export(model, "layer2")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head.save(folder / "head")
        tail.save(folder / "tail")
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=edge, args=(folder, theirs), daemon=True)
        process.start()
        answer = device(folder, ours.recv(), x)
        ours.send("stop")
        process.join(30)
    with torch.no_grad(), model.eval().at("layer2"):
        difference = float((answer - model(x)).abs().max())
    print(f"largest difference to the model with its codec on: {difference:.1e}")
    if difference > 1e-5:
        raise SystemExit("the edge answered something else than the model")


if __name__ == "__main__":
    main()
