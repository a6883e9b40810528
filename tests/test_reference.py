"""Agreement with the original, by the whole route: import, detector file, ONNX, NumPy.

Twice: with numbers of the original itself, where its reference folder is at hand (beside the
repository as ``shared/reference``, or at ``MASKSIM_REFERENCE``), and with numbers that the
independent implementation of `make_original_fixture` computes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import make_original_fixture as fixture  # type: ignore[import-not-found]
from masksim import model, preprocess, spectrum
from masksim.checkpoint import Branch, DetectorFile
from masksim.original.importer import import_original
from masksim.residual import OnnxResidual, ResidualConfig, residual_onnx

ROOT = Path(__file__).parents[1]
REFERENCE = Path(os.environ.get("MASKSIM_REFERENCE") or ROOT.parent / "shared" / "reference")
SPACES: dict[str, preprocess.ColourSpace] = {
    "RGB": "RGB",
    "YCbCr": "YCbCr-BT601-studio-8bit",
}
TOLERANCE = 1e-4


def detect(folder: Path, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """What a detector file, and nothing else, says of an image."""
    (branch,) = DetectorFile.load(folder).branches
    side = branch.preprocess["window"]
    height, width, _ = pixels.shape
    y, x = preprocess.centre_window(height, width, side, aligned=branch.preprocess["aligned"])
    window = pixels[y : y + side, x : x + side]
    planes = preprocess.to_colour(window, branch.preprocess["colour"])[None]
    residual = OnnxResidual(branch.onnx, threads=2)(planes)
    head = model.OriginalHead.from_tensors(branch.tensors)
    found = head.similarity(spectrum.log_spectrum(residual, branch.spectrum["epsilon"]))
    return {
        "input_mean": planes.mean(dtype=np.float64),
        "similarity": found.score[0],
        "prob": head.probability(found.score)[0],
        "map_sum_over_freq_per_channel": model.channel_cosines(found.map)[0],
        "map_mean": found.map.mean(dtype=np.float64),
        "map_std": found.map.std(dtype=np.float64),
        "map": found.map,
    }


def assert_agrees(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in (
        "input_mean",
        "similarity",
        "prob",
        "map_sum_over_freq_per_channel",
        "map_mean",
        "map_std",
    ):
        np.testing.assert_allclose(found[key], expected[key], rtol=TOLERANCE, err_msg=key)
    # Where the spectrum is nearly 0 its logarithm multiplies the rounding of the residual, in the
    # original's single precision as here: for single frequencies a tenth of the tolerance more.
    floor = TOLERANCE / 10 * expected["map_std"]
    for key, value in expected["map_samples"].items():
        at = (0, *map(int, key.split(",")))
        np.testing.assert_allclose(found["map"][at], value, rtol=TOLERANCE, atol=floor, err_msg=key)
    shown = found["map"].sum(axis=(1, 2, 3), dtype=np.float64) / 3
    np.testing.assert_allclose(shown, found["similarity"], rtol=1e-4)


@pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"the original's reference numbers are not at {REFERENCE}"
)
@pytest.mark.parametrize("name", ["dncnn512", "linear256"])
def test_numbers_of_the_original(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="checkpoints are imported with torch")
    reference = json.loads((REFERENCE / f"{name}.json").read_text())
    colour = SPACES[reference["color_space"]]
    import_original(REFERENCE / f"{name}.ckpt", tmp_path / name, colour=colour)
    for image, expected in reference["results"].items():
        with Image.open(REFERENCE / image) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        found = detect(tmp_path / name, pixels)
        assert list(found["map"].shape) == expected["map_shape"]
        assert_agrees(found, expected)


@pytest.mark.parametrize("space", SPACES)
def test_committed_numbers_without_torch(space: str, tmp_path: Path) -> None:
    expected = json.loads(fixture.EXPECTED.read_text())
    arrays = fixture.state("linear3x3", expected["window"], expected["num_masks"])
    config = ResidualConfig("linear3x3")
    weights = {"0.weight": arrays.pop("preproc.0.weight")}
    DetectorFile(
        config={"recipe": "original"},
        branches=(
            Branch(
                residual=config,
                residual_weights=weights,
                onnx=residual_onnx(config, weights),
                preprocess={
                    "window": expected["window"],
                    "colour": SPACES[space],
                    "windows": 1,
                    "aligned": True,
                },
                spectrum={"kind": "log", "epsilon": 1e-10},
                head="original",
                generators=("sd1",),
                tensors=arrays,
            ),
        ),
    ).save(tmp_path / "detector")
    found = detect(tmp_path / "detector", fixture.image(*expected["image_size"]))
    assert_agrees(found, expected[space])


def test_the_committed_numbers_are_those_of_the_script() -> None:
    pytest.importorskip("torch")

    def compare(a: Any, b: Any) -> None:
        if isinstance(b, dict):
            assert a.keys() == b.keys()
            for key in b:
                compare(a[key], b[key])
        else:
            np.testing.assert_allclose(a, b, rtol=1e-8)

    compare(fixture.expected(), json.loads(fixture.EXPECTED.read_text()))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("kind", "window", "masks"),
    [
        ("DnCNN", 64, 2),
        ("DnCNN", 71, 1),
        ("linear3x3", 64, 3),
        ("linear3x3", 45, 1),
        ("cross_diff", 64, 2),
        ("none", 50, 1),
    ],
)
def test_every_variant(kind: str, window: int, masks: int, space: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "sd2-epoch=37-valid_auroc=1.00-valid_loss=0.065-low_loss.ckpt"
    fixture.save_checkpoint(path, kind, window, masks)
    detector = import_original(path, tmp_path / "detector", colour=SPACES[space])
    assert detector.generators == ("sd2",)
    pixels = fixture.image(120, 131, seed=masks)
    y, x = (max(0, n // 2 - window // 2) // 8 * 8 for n in (120, 131))
    planes = fixture.colour(pixels[y : y + window, x : x + window], space == "YCbCr")
    expected = fixture.original(planes, fixture.state(kind, window, masks), kind)
    found = detect(tmp_path / "detector", pixels)
    assert found["map"].shape == expected["map"].shape
    np.testing.assert_allclose(found["input_mean"], planes.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["similarity"], expected["similarity"][0], rtol=TOLERANCE)
    np.testing.assert_allclose(found["prob"], expected["prob"][0], rtol=TOLERANCE)
    np.testing.assert_allclose(
        found["map_sum_over_freq_per_channel"],
        expected["channels"][0],
        rtol=TOLERANCE,
        atol=1e-6,  # of cosines, which may be near 0
    )
    scale = np.abs(expected["map"]).max()
    np.testing.assert_allclose(found["map"], expected["map"], rtol=0, atol=TOLERANCE * scale)
