"""The page and the table from results that are given: complete, valid, and loading nothing from anywhere."""

from __future__ import annotations

import copy
import io
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from compoff.demo.links import FORMULA, LINKS
from compoff.demo.report import render_report, write_report
from compoff.demo.table import cells, headers, notes, print_table
from compoff.errors import ArtifactError
from compoff.fitting import FitReport, SplitReport

if TYPE_CHECKING:
    from pathlib import Path

VOID = {"meta", "link", "br", "img", "hr", "input"}
FITS = FitReport({"layer2": SplitReport(loss=[3.0, 2.0, 1.0], distilled_from=1)}, 3, 1.0, 0, held_out=False)


def row(system: str, label: str, bytes_up: float, drop: float, milliseconds: float) -> dict[str, Any]:
    return {
        "system": system, "label": label, "split": "layer2" if system == "compoff" else None, "quality": None,
        "accuracy": 99.0 - drop, "drop": drop, "drop_stderr": 0.3, "agreement": 98.0, "bytes_up": bytes_up,
        "bytes_down": 61.0 if bytes_up else 0.0, "device_ms": 0.5, "edge_ms": 1.0, "loopback_ms": 1.5, "images": 600,
        "link_ms": {link.name: milliseconds for link in LINKS},
    }  # fmt: skip


RESULTS: dict[str, Any] = {
    "task": "digits", "title": "600 <digits> & more", "note": "A note.", "command": "compoff demo --seed 0", "seed": 0,
    "seconds": 60.0, "hardware": {"cpu": "a cpu", "cores": 2, "memory_gb": 8.0, "system": "Linux x86_64"},
    "versions": {"python": "3.11", "torch": "2.13"}, "formula": FORMULA,
    "links": [vars(link) for link in LINKS],
    "rows": [row("local", "stay on device", 0.0, 0.0, 50.0), row("raw", "send raw uint8", 80.0, 0.0, 40.0),
             row("jpeg", "send JPEG 50", 300.0, 3.0, 1.0), row("compoff", "compoff layer2", 30.0, 0.4, 30.0)],
    "fits": {"layer2": {"steps": 3, "seconds": 1.0, "raw_bytes": 4096,
                        "target_bytes": 40, "encoder_macs": 6144}},
}  # fmt: skip


class Page(HTMLParser):
    """Collects what a page holds; fails where tags do not close as they opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(attrs)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(RESULTS, FITS)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    parser = Page()
    parser.feed(html)
    parser.close()
    return parser


def test_page_is_well_formed(html: str, page: Page) -> None:
    assert html.startswith("<!DOCTYPE html>")
    assert not page.open
    assert len(page.ids) == len(set(page.ids)), "two pictures share an id"


def test_page_loads_nothing(html: str, page: Page) -> None:
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<img", html)
    assert all(target in page.ids for target in re.findall(r"url\(#([^)]*)\)", html))


def test_page_suits_a_phone_and_the_dark(html: str) -> None:
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert "currentColor" in html
    assert "#010203" not in html


def test_page_shows_everything(page: Page) -> None:
    shown = re.sub(r"\s+", " ", page.text)
    wanted = [cell for given in RESULTS["rows"] for cell in cells(given)]
    wanted += [RESULTS["title"], RESULTS["command"], FORMULA, "a cpu", "torch 2.13", "seed 0", *notes(RESULTS)]
    assert [text for text in wanted if text not in shown] == []
    assert page.text.count("milliseconds") == len(LINKS)


def test_equal_results_give_the_equal_page(html: str) -> None:
    assert render_report(copy.deepcopy(RESULTS), FITS) == html


def test_files_are_written(tmp_path: Path) -> None:
    write_report(RESULTS, FITS, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == RESULTS
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ArtifactError, match=r"report\.html cannot be written"):
        write_report(RESULTS, FITS, tmp_path)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_cell_is_cut(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    print_table(RESULTS, console)
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert [cell for given in RESULTS["rows"] for cell in cells(given) if cell not in printed] == []
    assert "…" not in printed


def test_a_cell_for_every_column() -> None:
    assert {len(cells(given)) for given in RESULTS["rows"]} == {len(headers(RESULTS))} == {9}


@pytest.mark.parametrize(("value", "text"), [(0.004, "<0.01"), (0.456, "0.46"), (4.56, "4.6"), (45.6, "46")])
def test_two_digits_that_count(value: float, text: str) -> None:
    assert cells({**RESULTS["rows"][0], "device_ms": value})[4] == text


def test_the_fastest_is_named_among_those_that_stay_accurate() -> None:
    fewest, told = notes(RESULTS)[-2:]  # JPEG is faster and loses three points
    assert fewest == "Fewest bytes within 2 points of drop: compoff layer2 (30)."
    assert "1 Mbit/s: compoff layer2 (30 ms)." in told
    assert "JPEG" not in told


def test_staying_on_the_device_is_named_where_it_wins() -> None:
    results = copy.deepcopy(RESULTS)
    results["rows"][0] = row("local", "stay on device", 0.0, 0.0, 2.0)
    assert "LTE: stay on device (2.0 ms), then of those that send: compoff layer2 (30 ms)." in notes(results)[-1]


def test_a_way_at_the_limit_is_within_it_and_what_is_not_sent_has_no_reply() -> None:
    results = {**RESULTS, "rows": [row("local", "stay on device", 0.0, 0.0, 50.0), row("jpeg", "all", 80.0, 2.0, 40.0)]}
    assert "Fewest bytes within 2 points of drop: all (80)." in notes(results)
    assert any("a reply takes 61." in note for note in notes(results))


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.0099, "<0.01"), (0.01, "0.01"), (0.994, "0.99"), (1.0, "1.0"), (9.94, "9.9"), (10.0, "10")],
)
def test_two_digits_of_a_time_are_shown(milliseconds: float, text: str) -> None:
    assert cells({**RESULTS["rows"][0], "device_ms": milliseconds})[4] == text


def test_no_way_within_the_limit_is_said() -> None:
    results = copy.deepcopy(RESULTS)
    results["rows"] = [given for given in results["rows"] if given["system"] in ("local", "jpeg")]
    assert notes(results)[-1] == "No way that sends anything stays within 2 points of drop."
