"""An export whose symbols are coded under context models: the same answers as without, in fewer bytes."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import compoff
from compoff.device.planner import Choice, Planner
from compoff.errors import PayloadError
from compoff.operations.inspecting import describe, show

if TYPE_CHECKING:
    from pathlib import Path


def smooth(samples: int, seed: int) -> Tensor:
    """Pictures of which some places are busy and others flat."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, 3, 20, 20, generator=generator)
    where = F.interpolate(torch.rand(samples, 1, 4, 4, generator=generator), size=16, mode="bilinear")
    return F.avg_pool2d(noise, 5, 1) * 8 * where**3


@pytest.fixture(scope="module")
def model() -> compoff.Wrapped:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 5))
    wrapped = compoff.wrap(net, "input", example_input=smooth(2, 0), channels=24, stride=4)
    compoff.fit(wrapped, [smooth(32, seed) for seed in range(6)], steps=2, progress=False)
    return wrapped


@pytest.fixture(scope="module")
def folder(model: compoff.Wrapped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    head, tail = compoff.export(model, "input")
    path = tmp_path_factory.mktemp("export")
    head.save(path / "head")
    tail.save(path / "tail")
    return path


def test_the_figures_are_of_what_is_sent(model: compoff.Wrapped, folder: Path) -> None:
    head = compoff.Head.load(folder)
    assert head.tables[0].contexts
    curve = model.reports["input"]["curve"]
    pictures = torch.cat([smooth(32, seed) for seed in range(6)])
    for quality in (0, len(curve) - 1):
        lengths = {
            coding: np.mean([len(head(one[None], quality=quality, coding=coding)) for one in pictures])
            for coding in ("range", "static")
        }
        assert lengths["range"] < lengths["static"]
        assert lengths["range"] == pytest.approx(curve[quality]["bytes"], abs=0.05)  # a symbol in thousands may flip


def test_answers_are_those_without_contexts_to_the_last_bit(folder: Path) -> None:
    head, tail = compoff.Head.load(folder), compoff.Tail.load(folder)
    pictures = smooth(6, 99)
    for quality in range(head.payload_format.num_qualities):
        payloads = [head(pictures, quality=quality, coding=coding) for coding in ("range", "static", "huffman", "raw")]
        answers = [tail([payload])[0] for payload in payloads]
        assert all(torch.equal(answer, answers[0]) for answer in answers)
        assert payloads[0].data[0] & 15 == 5


def test_a_remote_with_a_goal_has_both_codings(folder: Path) -> None:
    head, tail = compoff.Head.load(folder), compoff.Tail.load(folder)
    picture = smooth(1, 97)
    with (
        compoff.serve(tail, "127.0.0.1:0") as server,
        compoff.connect(head, server.address, goal=compoff.Goal(agreement=0)) as remote,
    ):
        plans = {(plan.quality, plan.coding): plan for plan in remote.profile(picture)}
        for quality in range(head.payload_format.num_qualities):
            assert plans[quality, None].payload_bytes < plans[quality, "static"].payload_bytes
            assert plans[quality, None].measured
            assert plans[quality, "static"].measured
        for coding in (None, "static", "raw"):
            answer, report = remote(picture, quality=0, coding=coding), remote.last
            assert report is not None
            assert torch.equal(answer, tail([head(picture, quality=0)])[0])
            assert report.coding == coding
            assert report.payload_bytes == len(head(picture, quality=0, coding=coding or "range"))


def test_a_limit_takes_context_models_before_a_lower_quality_where_a_goal_left_them_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, tail = compoff.Head.load(folder), compoff.Tail.load(folder)
    picture, quality = smooth(1, 95), head.payload_format.num_qualities - 2
    static, shortest = (len(head(picture, quality=quality, coding=coding)) for coding in ("static", "range"))
    assert shortest < static
    monkeypatch.setattr(Planner, "choose", lambda *_: Choice(None, quality, coding="static"))
    goal = compoff.Goal(agreement=0)

    def sent(report: compoff.CallReport | None) -> tuple[int | None, str | None, int]:
        assert report is not None
        return report.quality, report.coding, report.payload_bytes

    async def limited(limit: int) -> tuple[int | None, str | None, int]:
        async with await compoff.connect_async(head, server.address, goal=goal) as remote:
            await remote(picture, max_bytes=limit)
            return sent(remote.last)

    with (
        compoff.serve(tail, "127.0.0.1:0") as server,
        compoff.connect(head, server.address, goal=goal) as remote,
    ):
        answer = remote(picture, max_bytes=static)
        assert sent(remote.last) == (quality, "static", static)
        assert torch.equal(remote(picture, max_bytes=static - 1), answer)
        assert sent(remote.last) == (quality, None, shortest)
        assert asyncio.run(limited(static - 1)) == (quality, None, shortest)
        for limit, options in ((shortest - 1, {}), (static - 1, {"coding": "static"})):
            remote(picture, max_bytes=limit, **options)
            expected = head(picture, quality=quality, max_bytes=limit, **options)
            assert expected.quality < quality
            assert sent(remote.last) == (expected.quality, options.get("coding"), len(expected))


def test_max_bytes_cuts_and_what_is_left_is_answered(folder: Path) -> None:
    head, tail = compoff.Head.load(folder), compoff.Tail.load(folder)
    picture = smooth(1, 98)
    lowest = len(head(picture, quality=0))
    payload = head(picture, max_bytes=lowest - 2)
    assert payload.cut
    assert len(payload) == lowest - 2
    assert tail([payload])[0].shape == (1, 5)


def test_a_head_of_another_export_is_refused(model: compoff.Wrapped, folder: Path) -> None:
    """Context models are part of what an export is: without them it is another one."""
    prior = model.bottleneck("input").prior
    kept, prior.contexts = prior.contexts, ()
    try:
        plain, _ = compoff.export(model, "input")
    finally:
        prior.contexts = kept
    head, tail = compoff.Head.load(folder), compoff.Tail.load(folder)
    assert plain.artifact_id != head.artifact_id
    with pytest.raises(PayloadError):
        tail([bytes(plain(smooth(1, 0)))])


def test_bottlenecks_that_are_saved_keep_them_and_inspect_says_so(
    model: compoff.Wrapped, folder: Path, tmp_path: Path
) -> None:
    model.save(tmp_path / "bottlenecks.safetensors")
    shown = inspected(tmp_path / "bottlenecks.safetensors")
    assert "under context models" in shown
    check_static(shown, model)
    base = model.unwrap()
    again = compoff.load(tmp_path / "bottlenecks.safetensors", base)
    try:
        assert compoff.export(again, "input")[0].artifact_id == compoff.Head.load(folder).artifact_id
    finally:
        again.unwrap()


def inspected(path: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(describe(path), console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def check_static(shown: str, model: compoff.Wrapped) -> None:
    """What each quality takes without context models stands beside what it takes."""
    rows = [line.split("│")[1:-1] for line in shown.replace("┃", "│").splitlines() if "│" in line.replace("┃", "│")]
    [heads] = [[cell.strip() for cell in row] for row in rows if "static" in "".join(row)]
    place = heads.index("bytes")
    assert heads[place + 1] == "static"
    found = [(row[place].strip(), row[place + 1].strip()) for row in rows if len(row) == len(heads)]
    curve = model.reports["input"]["curve"]
    assert found[1:] == [(f"{point['bytes']:.1f}", f"{point['static_bytes']:.1f}") for point in curve]


def test_inspect_says_so(model: compoff.Wrapped, folder: Path) -> None:
    assert describe(folder)[0]["codes"][0]["contexts"] is True
    shown = inspected(folder / "head")
    assert "255 × [24, 4, 4], under context models" in shown
    check_static(shown, model)
