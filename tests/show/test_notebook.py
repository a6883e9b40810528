"""Detections in notebooks: the card, the plot, the picture; and the page about them, run."""

from __future__ import annotations

import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import fake_detector as fake  # type: ignore[import-not-found]
from conftest import make_natural
from masksim.errors import UsageError
from masksim.show.card import to_html

DOCS = Path(__file__).parents[2] / "docs"


class Fragment(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_card_says_what_was_found() -> None:
    detection = fake.detection(cautions=("Beware.",))
    card = Fragment(detection._repr_html_())
    verdict = detection.verdict
    for text in (
        verdict.headline,
        verdict.explanation,
        "Beware.",
        "photo.jpg",
        "not prove that it is a photo",
    ):
        assert text in card.text
    for score in detection.scores:
        assert score.generator in card.text
        assert f"{score.similarity:.4f}" in card.text
    widths = re.findall(r"width:(\d+)%", detection._repr_html_())
    assert [int(w) for w in widths] == sorted(map(int, widths), reverse=True)
    assert len(widths) == len(detection.scores)


def test_the_card_is_escaped() -> None:
    evil = '<script>alert(1)</script>"onload="x'
    found = fake.detection({evil: 0.004, "b": 0.5}, image=fake.facts(evil), cautions=(evil,))
    card = Fragment(to_html(found))
    assert card.text.count(evil) >= 3
    assert card.tags <= {"div", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert card.attributes <= {"style", "scope"}


def test_the_card_of_an_uncalibrated_detector() -> None:
    card = Fragment(to_html(fake.detection(calibrated=False)))
    assert "Not calibrated" in card.text
    assert "%" not in card.text.replace("100 %", "")
    assert "Each rate is" not in card.text


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_plot(calibrated: bool) -> None:
    figure_type = pytest.importorskip("matplotlib.figure").Figure
    figure = fake.detection({"a$b": 0.004, "b": 0.5, "c": 0.9}, calibrated=calibrated).plot()
    assert isinstance(figure, figure_type)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=50)
    with Image.open(buffer) as image:
        assert image.width > 200
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["c", "b", r"a\$b"]  # the most telling on top
    if calibrated:
        assert axes.get_xscale() == "log"
        assert axes.lines[0].get_xdata().tolist() == [0.9, 0.5, 0.004]


def test_the_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install \"\.\[plot\]\""):
        fake.detection().plot()


def test_a_map_shows_itself() -> None:
    shown = fake.Detector().similarity_maps(None)["sd1"]
    assert shown._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", ["notebook.md", "report.md"])
def test_the_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.M | re.S)
    assert blocks
    if any("plot" in block for block in blocks):
        pytest.importorskip("matplotlib")
    Image.fromarray(make_natural(300, 320, seed=9)).save(tmp_path / "photo.jpg", quality=92)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
