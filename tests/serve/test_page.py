"""The page of the service, in a real browser: Chromium by Playwright, where they are."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import make_natural

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

# A page in a browser: the oldest versions change the service, which test_server.py asks.
pytestmark = pytest.mark.slow

from local_service import served  # type: ignore[import-not-found]  # noqa: E402
from masksim.load import load_detector  # noqa: E402

DESK, PHONE = (1280, 900), (390, 844)
PATIENCE = 60_000  # ms: one core, shared


@pytest.fixture(scope="module")
def service() -> Iterator[Any]:
    with served(load_detector(threads=1), workers=2) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Playwright downloads browsers of its own; a system's serves as well.
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as run:
        try:
            found = run.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("page")
    scene = Image.fromarray(make_natural(640, 720, seed=1))
    scene.save(folder / "scene.jpg", quality=92)
    scene.crop((0, 0, 600, 560)).save(folder / "crop.png", compress_level=1)
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    # A name is a name, whatever it looks like.
    scene.save(folder / "<img src=x onerror=alert(1)>.jpg", "JPEG", quality=80)
    # 50 megapixels: one scene over and over.
    Image.fromarray(np.tile(make_natural(720, 880, seed=2), (8, 10, 1))[:5700, :8800]).save(
        folder / "large.jpg", quality=88
    )
    return {path.name: path for path in folder.iterdir()}


class Opened:
    """A page, and what it complained of."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int], scheme: str) -> None:
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on(
            "console",
            lambda message: (
                self.faults.append(message.text)
                if message.type in ("error", "warning") and "status of 4" not in message.text
                else None
            ),
        )
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.locator("#model", has_text="generators").wait_for()

    def drop(self, *paths: Path) -> None:
        """Let files fall on the page, as the browser's own events."""
        data = self.page.evaluate_handle("() => new DataTransfer()")
        for path in paths:
            # Through an input: bytes need not become a text on the way.
            self.page.evaluate(
                "() => { const i = document.createElement('input'); i.type = 'file';"
                " i.id = 'hand'; i.hidden = true; document.body.append(i); }"
            )
            self.page.set_input_files("#hand", path)
            self.page.evaluate(
                "(data) => { const i = document.getElementById('hand');"
                " data.items.add(i.files[0]); i.remove(); }",
                data,
            )
        for event in ("dragenter", "dragover"):
            self.page.dispatch_event("#drop", event, {"dataTransfer": data})
        assert "over" in (self.page.get_attribute("#drop", "class") or "")
        self.page.dispatch_event("#drop", "drop", {"dataTransfer": data})
        assert "over" not in (self.page.get_attribute("#drop", "class") or "")

    def result(self, name: str) -> Any:
        """Wait for the result of a file."""
        found = self.page.locator(f'.result[aria-label="{name}"]').first
        found.locator(".plain").wait_for()
        return found

    def wide(self) -> int:
        return int(self.page.evaluate("() => document.documentElement.scrollWidth"))


@pytest.fixture
def opened(browser: Any, service: Any) -> Iterator[Any]:
    pages: list[Opened] = []

    def open_page(size: tuple[int, int] = DESK, scheme: str = "light") -> Opened:
        pages.append(Opened(browser, str(service.base_url), size, scheme))
        return pages[-1]

    yield open_page
    for one in pages:
        assert one.faults == []
        outside = [
            u for u in one.asked if not u.startswith((str(service.base_url), "blob:", "data:"))
        ]
        assert outside == []
        one.context.close()


def test_images_are_dropped(opened: Any, files: dict[str, Path]) -> None:
    here = opened()
    here.drop(files["scene.jpg"], files["crop.png"], files["notes.txt"])
    for name, size in (("scene.jpg", "720 × 640"), ("crop.png", "600 × 560")):
        found = here.result(name)
        assert found.locator(".verdict").inner_text()
        assert size in found.locator(".file-facts").inner_text()
        assert found.locator(".bars tbody tr").count() == 15
        assert "real photos" in found.locator(".plain").inner_text()
        # One map of all channels, with its spots in words; all else is folded.
        assert found.locator(".composed canvas").count() == 1
        assert found.locator(".spots li").count() == found.locator(".spot").count() > 0
        assert found.locator("details[open]").count() == 0
        assert "says nothing of its origin" in found.locator(".said").inner_text()
        found.locator(".preview img").wait_for()
    wrong = here.result("notes.txt")
    assert wrong.locator(".verdict").inner_text() == "Not analysed"
    assert "not an image" in wrong.locator(".plain").inner_text()
    # Said aloud, too.
    assert here.page.locator("#live").inner_text()
    assert here.page.locator("#live").get_attribute("aria-live") == "polite"
    # And remembered by this browser alone, until it is told to forget.
    here.page.reload()
    here.page.locator(".past button").nth(1).wait_for()
    here.page.locator(".past button", has_text="scene.jpg").click()
    assert "720" in here.result("scene.jpg").locator(".file-facts").inner_text()
    here.page.click("#clear")
    here.page.reload()
    here.page.locator("#model", has_text="generators").wait_for()
    assert here.page.locator(".past button").count() == 0


def test_large_images_and_names_like_markup(opened: Any, files: dict[str, Path]) -> None:
    here = opened()
    odd = "<img src=x onerror=alert(1)>.jpg"
    here.drop(files["large.jpg"], files[odd])
    assert "8,800 × 5,700" in here.result("large.jpg").locator(".file-facts").inner_text()
    here.result("large.jpg").locator(".preview img").wait_for()
    here.result(odd)
    assert here.page.locator(".file", has_text=odd).count() == 1
    assert here.page.locator('img[src="x"]').count() == 0


def test_maps_explain_on_hover_and_by_keyboard(opened: Any, files: dict[str, Path]) -> None:
    here = opened()
    here.page.set_input_files("#files", files["scene.jpg"])
    found = here.result("scene.jpg")
    found.locator("summary", has_text="Maps of every").click()
    field, read = found.locator(".field"), found.locator(".read")
    field.wait_for()
    found.locator(".tile").nth(22).wait_for()  # they are drawn one after another
    assert found.locator(".tile").count() == 23
    assert "Point at the map" in read.inner_text()
    box = field.bounding_box()
    # A quarter from the left is 0.25 cycles/pixel to the left of the middle.
    field.hover(position={"x": box["width"] * 0.2505, "y": box["height"] * 0.5005})
    assert "−0.250 across, +0.000 down, in cycles/pixel: a ripple every 4.0 pixels" in (
        read.inner_text()
    )
    assert "% of the similarity" in read.inner_text() or "Adds nothing" in read.inner_text()
    field.focus()
    for key in ("ArrowRight", "Shift+ArrowDown"):
        here.page.keyboard.press(key)
    assert "−0.242 across, +0.062 down" in read.inner_text().replace("0.063", "0.062")
    # Colour has half the resolution.
    found.locator('.tile input[title="blue-yellow colour, median"]').check(force=True)
    assert read.inner_text().startswith("blue-yellow colour, median")
    assert "−0.25" in found.locator(".axis-x").inner_text()
    found.locator("select").select_option(index=3)
    found.locator('.switch input[value="spectrum"]').check(force=True)
    assert "same for every generator" in found.locator(".map-note").inner_text()


def test_the_keyboard_suffices(opened: Any, files: dict[str, Path]) -> None:
    here = opened()
    order = []
    for _ in range(5):
        here.page.keyboard.press("Tab")
        order.append(
            here.page.evaluate(
                "() => document.activeElement.id || document.activeElement.textContent"
            )
        )
    assert order[:4] == ["Skip to the results", "What it means", "History", "choose"]
    with here.page.expect_file_chooser() as chosen:
        here.page.focus("#choose")  # in here, for the browser has to be told first
        here.page.keyboard.press("Enter")
    chosen.value.set_files(files["crop.png"])
    found = here.result("crop.png")
    for text in ("All generators", "Maps of every generator and channel"):
        here.page.keyboard.press("Tab")
        assert here.page.evaluate("() => document.activeElement.textContent") == text
    here.page.keyboard.press("Enter")
    found.locator(".tile").first.wait_for()
    for _ in range(4):  # generator, shown, map, channels
        here.page.keyboard.press("Tab")
    here.page.keyboard.press("ArrowRight")
    assert "normalised" in found.locator(".read").inner_text()


def test_an_image_is_pasted(opened: Any, files: dict[str, Path]) -> None:
    here = opened()
    here.page.evaluate(
        "() => { const i = document.createElement('input'); i.type = 'file'; i.id = 'hand';"
        " i.hidden = true; document.body.append(i); }"
    )
    here.page.set_input_files("#hand", files["scene.jpg"])
    here.page.evaluate(
        "() => { const data = new DataTransfer();"
        " data.items.add(document.getElementById('hand').files[0]);"
        " document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data })); }"
    )
    here.result("scene.jpg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(opened: Any, files: dict[str, Path], scheme: str) -> None:
    here = opened(PHONE, scheme)
    here.page.set_input_files("#files", files["scene.jpg"])
    found = here.result("scene.jpg")
    for fold in found.locator("summary").all():
        fold.click()
    found.locator(".tile canvas").first.wait_for()
    assert here.wide() <= PHONE[0]
    for part in (".verdict", ".scale", ".composed", ".bars", ".field", ".tiles", ".facts"):
        box = found.locator(part).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE[0]
    # Text stands out as WCAG AA asks: 4.5 to 1.
    assert min(contrasts(here.page).values()) >= 4.5


def contrasts(page: Any) -> dict[str, float]:
    """Contrast of each text with what is behind it, by relative luminance."""
    pairs = page.evaluate(
        """() => [...document.querySelectorAll(`p, h1, h2, h3, a, td, th, dt, dd, li, label,
            button, summary, .ticks span, .row-name`)].filter((e) => e.offsetParent &&
            e.textContent.trim() && !e.closest('.unseen, .skip')).map((e) => {
          let b = e;
          while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
          return [e.className + ' ' + e.tagName, getComputedStyle(e).color,
            getComputedStyle(b).backgroundColor];
        })"""
    )

    def luminance(colour: str) -> float:
        values = [int(v) / 255 for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    found = {}
    for name, front, back in pairs:
        high, low = sorted((luminance(front), luminance(back)), reverse=True)
        found[f"{name} {front} {back}"] = (high + 0.05) / (low + 0.05)
    assert len(pairs) > 30
    return found


def test_a_token_is_asked_for(browser: Any, files: dict[str, Path]) -> None:
    with served(load_detector(threads=1), token="word", workers=1) as guarded:
        page = browser.new_context().new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(str(guarded.base_url))
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.locator("#access-note", has_text="not the token").wait_for()
        page.fill("#token", "word")
        page.keyboard.press("Enter")
        page.locator("#model", has_text="generators").wait_for()
        assert page.locator("#access").is_hidden()
        page.set_input_files("#files", files["scene.jpg"])
        page.locator(".result .plain").wait_for()
        page.context.close()


def test_history_can_be_off(opened: Any, files: dict[str, Path]) -> None:
    here = opened()
    here.page.uncheck("#keep")
    here.page.set_input_files("#files", files["crop.png"])
    here.result("crop.png")
    kept = here.page.evaluate("() => Object.keys(localStorage)")
    assert kept == ["masksim-no-history"]
    assert here.page.locator(".past button").count() == 0


def test_the_picture_of_a_format_the_browser_cannot_show(opened: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(make_natural(400, 400)).save(buffer, "TIFF")
    (tmp_path / "page.tif").write_bytes(buffer.getvalue())
    here = opened()
    here.page.set_input_files("#files", tmp_path / "page.tif")
    assert "TIFF" in here.result("page.tif").locator(".file-facts").inner_text()
