"""The grid of degradations, against Pillow, SciPy and what the names promise."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from masksim import augment
from masksim.augment import rng_for
from masksim.errors import UsageError
from masksim.evaluation.degrade import GRID, MILD, PHONES, Degradation, select
from masksim.image import estimate_jpeg_quality

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def picture() -> Pixels:
    from conftest import make_natural

    return make_natural(320, 448, seed=3)


def run(name: str, pixels: Pixels, *keys: object) -> Pixels:
    return GRID[name].apply(pixels, rng_for(name, *keys))


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("one", GRID.values(), ids=lambda one: one.name)
def test_each_is_a_pure_function_of_pixels_and_generator(one: Degradation, picture: Pixels) -> None:
    before = picture.copy()
    found = one.apply(picture, rng_for("a"))
    np.testing.assert_array_equal(picture, before)
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 3
    again = pickle.loads(pickle.dumps(one)).apply(before, rng_for("a"))  # as a worker gets it
    np.testing.assert_array_equal(again, found)
    assert one.name == one.family or one.name.startswith(one.family + "-")
    assert one.does


@pytest.mark.parametrize("one", GRID.values(), ids=lambda one: one.name)
@pytest.mark.parametrize("size", [(1, 1), (3, 40)])
def test_slivers_are_degraded_too(one: Degradation, size: tuple[int, int]) -> None:
    found = one.apply(np.full((*size, 3), 90, np.uint8), rng_for("sliver"))
    assert min(found.shape) >= 1


def test_the_order_of_images_and_degradations_does_not_matter(picture: Pixels) -> None:
    images = {"a": picture[:160], "b": picture[160:]}
    names = ["noise-2", "crop-drawn", "screenshot-phone", "resize-1.1"]
    jobs = [(name, key) for name in names for key in images]
    forwards = {(n, k): run(n, images[k], k).tobytes() for n, k in jobs}
    backwards = {(n, k): run(n, images[k], k).tobytes() for n, k in reversed(jobs)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(jobs)


def test_none_changes_nothing(picture: Pixels) -> None:
    np.testing.assert_array_equal(run("none", picture), picture)
    assert next(iter(GRID)) == "none"


# --- compression -------------------------------------------------------------------------------


def last_jpeg(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Collect every file that is encoded on the way."""
    files: list[bytes] = []

    def encode(*args: Any, **options: Any) -> bytes:
        files.append(real_encode(*args, **options))
        return files[-1]

    real_encode: Callable[..., bytes] = augment.encode
    monkeypatch.setattr(augment, "encode", encode)
    return files


def quality_and_chroma(file: bytes) -> tuple[int, int, int]:
    with Image.open(io.BytesIO(file)) as image:
        opened: Any = image
        return (estimate_jpeg_quality(opened.quantization[0]), *opened.layer[0][1:3])


@pytest.mark.parametrize(
    ("name", "qualities"),
    [(f"jpeg-{q}", [q]) for q in (50, 60, 70, 80, 90, 95, 100)]
    + [
        ("screenshot-monitor-jpeg-90", [90]),
        ("screenshot-phone-jpeg-90", [90]),
        ("social-2048-q85", [85]),
        ("social-2048-q71", [71]),
        ("social-1600-q80", [80]),
        ("social-1280-q87", [87]),
        ("social-1080-q72", [72]),
        ("social-1600-q75-twice", [75, 75]),
        ("social-2048-q85-then-1080-q72", [85, 72]),
        ("social-1600-q75-screenshot-1080-q72", [75, 72]),
    ],
)
def test_jpegs_have_the_quality_of_their_name(
    name: str, qualities: list[int], picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = last_jpeg(monkeypatch)
    found = run(name, picture)
    assert [quality_and_chroma(file) for file in files] == [(q, 2, 2) for q in qualities]
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(files[-1]))))


@pytest.mark.parametrize("family", ["jpeg", "webp"])
def test_lower_quality_is_a_smaller_file_further_off(
    family: str, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = last_jpeg(monkeypatch)
    ranked = sorted(select([family]), key=lambda one: int(one.name.split("-")[1]))
    near = [psnr(one.apply(picture, rng_for("x")), picture) for one in ranked]
    assert near == sorted(near)
    assert 20 < near[0] < near[-1] < 60
    sizes = [len(file) for file in files]
    assert sizes == sorted(sizes)
    assert {file[:2] for file in files} == {b"\xff\xd8" if family == "jpeg" else b"RI"}


# --- geometry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0])
def test_resizing_draws_one_of_three_filters(factor: float, picture: Pixels) -> None:
    size = (round(448 * factor), round(320 * factor))
    expected = {
        np.asarray(Image.fromarray(picture).resize(size, kind)).tobytes()
        for kind in (
            Image.Resampling.BILINEAR,
            Image.Resampling.BICUBIC,
            Image.Resampling.LANCZOS,
        )
    }
    assert {run(f"resize-{factor:g}", picture, i).tobytes() for i in range(20)} == expected


def test_off_grid_crops_move_the_blocks_of_jpeg() -> None:
    blocks = np.add.outer(np.arange(64) // 8, np.arange(64) // 8).astype(np.uint8) * 10
    blocks = np.repeat(blocks[..., None], 3, axis=2)
    starts = set()
    for i in range(40):
        found = run("crop-off-grid", blocks, i)
        top, left = 64 - found.shape[0], 64 - found.shape[1]
        np.testing.assert_array_equal(found, blocks[top:, left:])
        starts |= {top, left}
    assert starts == set(range(1, 8))


def test_the_central_crop_is_central(picture: Pixels) -> None:
    np.testing.assert_array_equal(run("crop-centre-50", picture), picture[80:240, 112:336])


def test_drawn_crops_are_parts_of_the_image() -> None:
    place = np.zeros((100, 200, 3), np.uint8)
    place[..., 0], place[..., 1] = np.arange(100)[:, None], np.arange(200)
    shares = []
    for i in range(50):
        found = run("crop-drawn", place, i)
        top, left = (int(v) for v in found[0, 0, :2])
        height, width = found.shape[:2]
        np.testing.assert_array_equal(found, place[top : top + height, left : left + width])
        shares += [height / 100, width / 200]
    assert 0.5 <= min(shares) < 0.55
    assert 0.85 < max(shares) <= 0.9


# --- pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 1, 2])
def test_blur_is_near_scipys_gaussian(sigma: float, picture: Pixels) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    expected = ndimage.gaussian_filter(picture.astype(float), (sigma, sigma, 0), mode="nearest")
    found = run(f"blur-{sigma:g}", picture)[8:-8, 8:-8].astype(float)
    error = float(np.sqrt(np.mean((found - expected[8:-8, 8:-8]) ** 2)))
    changed = float(np.sqrt(np.mean((picture[8:-8, 8:-8] - expected[8:-8, 8:-8]) ** 2)))
    assert error < 0.25 * changed  # Pillow's is three box filters
    assert changed > 0.5


def test_sharpening_lifts_the_high_frequencies(picture: Pixels) -> None:
    def detail(pixels: Pixels) -> float:
        return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())

    measured = [detail(run(name, picture)) for name in ("none", "sharpen-50", "sharpen-150")]
    assert measured == sorted(measured)
    assert measured[2] > 1.3 * measured[0]
    flat = np.full((32, 32, 3), 77, np.uint8)
    np.testing.assert_array_equal(run("sharpen-150", flat), flat)


@pytest.mark.parametrize("sigma", [1, 2, 5])
def test_noise_has_the_sigma_of_its_name(sigma: int) -> None:
    grey = np.full((300, 300, 3), 128, np.uint8)
    noise = run(f"noise-{sigma}", grey).astype(float) - 128
    assert noise.std() == pytest.approx(np.sqrt(sigma**2 + 1 / 12), rel=0.01)  # and rounding
    assert abs(noise.mean()) < 0.05
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    white = np.full((50, 50, 3), 255, np.uint8)
    assert run(f"noise-{sigma}", white).min() > 255 - 7 * sigma  # clipped, not wrapped


# --- screens and shares ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1024, 1024), (600, 1600), (3000, 1500)])
def test_a_screenshot_of_the_monitor_fits_it(size: tuple[int, int]) -> None:
    found = run("screenshot-monitor", np.zeros((*size, 3), np.uint8)).shape
    factor = min(1080 / size[0], 1920 / size[1])
    for side, of in zip(found, size, strict=False):
        assert 0 <= round(of * factor) - side <= 16


def test_a_screenshot_of_a_phone_fits_one_of_the_phones(picture: Pixels) -> None:
    widths = {run("screenshot-phone", picture, i).shape[1] for i in range(60)}
    phones = {width for _, width in PHONES}
    assert {p for p in phones for w in widths if 0 <= p - w <= 16} == phones
    assert all(any(0 <= p - w <= 16 for p in phones) for w in widths)


def test_screenshots_hold_the_image_and_nothing_of_the_frame() -> None:
    found = run("screenshot-monitor", np.full((500, 300, 3), 200, np.uint8))
    assert set(np.unique(found)) == {200}


@pytest.mark.parametrize(
    ("name", "longer"),
    [
        ("social-2048-q85", 2048),
        ("social-1600-q75-twice", 1600),
        ("social-1280-q87", 1280),
        ("social-2048-q85-then-1080-q72", 1080),
        ("social-1600-q75-screenshot-1080-q72", 1080),
    ],
)
def test_shares_reduce_and_never_enlarge(name: str, longer: int) -> None:
    wide = run(name, np.zeros((900, 3000, 3), np.uint8)).shape
    assert longer - 16 * ("screenshot" in name) <= wide[1] <= longer
    assert wide[0] == pytest.approx(longer * 0.3, rel=0.05)
    if "screenshot" not in name:
        assert run(name, np.zeros((300, 200, 3), np.uint8)).shape == (300, 200, 3)


def test_a_second_hop_loses_more(picture: Pixels) -> None:
    small = picture[:256, :256]
    once, twice = run("social-2048-q85", small), run("social-2048-q85-then-1080-q72", small)
    assert psnr(twice, small) < psnr(once, small)


# --- choosing ----------------------------------------------------------------------------------


def test_choosing_by_name_family_and_all() -> None:
    assert select(["all"]) == list(GRID.values())
    assert [one.name for one in select(["blur", "none", "jpeg-70", "blur-1"])] == [
        *("blur-0.5", "blur-1", "blur-2"),
        *("none", "jpeg-70"),
    ]
    assert select([]) == []
    families = {one.family for one in GRID.values()}
    assert families == {
        *("none", "jpeg", "webp", "resize", "crop", "blur"),
        *("sharpen", "noise", "screenshot", "social"),
    }
    assert all(select([family]) for family in families)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no degradation 'jpg-70'.*families: all.*jpeg-70"):
        select(["jpeg", "jpg-70"])


def test_the_page_lists_them_all() -> None:
    page = Path(__file__).parents[2] / "docs" / "tables" / "degradations.md"
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if "| `" in line]
    assert rows == [f"| `{one.name}` | {one.does} |" for one in GRID.values()]


def test_the_file_that_a_degraded_image_comes_from() -> None:
    """What is recorded is what the last compression was, as the steps themselves call it."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 110, 3)).astype(np.uint8)
    for one in (*GRID.values(), *MILD):
        calls: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            real = augment.reencode

            def spy(image: Any, format: str, quality: int, *rest: Any, real: Any = real) -> Any:
                found = real(image, format, quality, *rest)
                calls.append((format, quality, found))  # noqa: B023
                return found

            patch.setattr(augment, "reencode", spy)
            result = one.apply(pixels, np.random.default_rng(1))
        if calls and result is calls[-1][2]:
            format, quality, _ = calls[-1]
            assert one.saved_as == (format, quality if format == "JPEG" else None), one.name
        elif one.name == "none":
            assert one.saved_as is None
        else:
            assert one.saved_as == ("PNG", None), one.name
