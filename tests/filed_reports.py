"""Fixtures for all tests of the filed report: the bundled detector and a report by it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from conftest import encode, make_natural
from masksim.detector import Detector
from masksim.dossier import check, make_report
from masksim.dossier import page as pages
from masksim.dossier.build import Report
from masksim.load import load_detector

WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)
VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture(scope="session")
def detector() -> Detector:
    # Without the probes, which triple the time.
    return load_detector(threads=1, stability=False)


@pytest.fixture(scope="session")
def photo() -> bytes:
    return encode(Image.fromarray(make_natural(600, 1100, seed=4)), "JPEG", quality=92)


@pytest.fixture(scope="session")
def small() -> bytes:
    return encode(Image.fromarray(make_natural(264, 280, seed=7)), "JPEG", quality=92)


@pytest.fixture(scope="session")
def report(detector: Detector, photo: bytes) -> Report:
    return make_report(detector, photo, name="a folder/photo.jpg", created=WHEN)


class Page(HTMLParser):
    """Checks that every element is closed in order; collects elements and visible text."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.hidden = ""
        self.feed(page.decode("ascii"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.hidden += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def checks(found: check.Verification) -> dict[str, bool | None]:
    return {one.name: one.passed for one in found.checks}


def forge(report: Report, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> bytes:
    """Change the data or pictures and draw the whole page anew."""
    data, pictures = pages.embedded(report.html)
    change(data, pictures)
    return pages.render(data, pictures)
