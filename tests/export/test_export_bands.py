"""`masksim.export.graph` of detectors with heads for each band of compression: the graph agrees."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from conftest import make_natural, make_planted, plant
from masksim.bank import bank_residual
from masksim.checkpoint import DetectorFile, population_arrays
from masksim.cli import main as cli
from masksim.data.manifest import REAL, Manifest
from masksim.detector import Detector
from masksim.errors import UsageError
from masksim.export import graph as export
from masksim.export import onnx as onnx_file
from masksim.export import openvino as openvino_file
from masksim.export import runner as exported
from masksim.load import load_detector
from masksim.preprocess import luma_chroma
from masksim.residual import OPSET
from masksim.spectrum import segment_energies
from masksim.traits import BANDS, TRAITS, compression_band
from masksim.usual import TERMS, USUAL_ARRAYS, UsualScores

onnx = pytest.importorskip("onnx")
pytest.importorskip("sklearn")

SIZES = [(96, 96), (70, 75), (64, 200), (150, 130), (330, 340)]
"""One window, one smaller than it could be, three in a row, one, and several."""

FILES = [("PNG", None), ("JPEG", 97), ("JPEG", 90), ("JPEG", 75), ("JPEG", 55), ("WEBP", None)]
"""Format and JPEG quality of a file: of all bands, the first two of the same."""


@dataclass(frozen=True, eq=False)
class Bands:
    """A small detector and its graph."""

    file: DetectorFile
    detector: Detector
    graph: exported.GraphRunner


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Bands:
    from masksim.training.bands import BandsConfig, train_bands

    folder = tmp_path_factory.mktemp("bands")
    rows = make_planted(
        folder, {REAL: 30, "grid": 12, "ring": 12, "few": 2}, "train", size=(176, 192), seed=7
    )
    config = BandsConfig.from_dict(
        {
            "smallest_class": 6, "smallest_sources": 2, "folds": 2, "components": 12,
            "photos": 12, "images": 6, "stratum_photos": 6, "stratum_sources": 2,
            "strata": [["band", [0.5, 1.5, 2.5, 3.5]], ["energy", 2], ["side", [150.0]]],
            "views": {
                "views": {"*": 3},
                "ways": {
                    "region": 320, "smallest": 64, "ways": {"direct": 0.7, "reduced": 0.3},
                    "ends": {"high": 1.0, "middle": 1.0, "low": 1.0, "webp": 1.0},
                },
            },
            "features": {
                "window": 96, "smallest": 64, "region": 320, "spacing": 32,
                "segment": 32, "hops": [24, 16], "cell": 4,
            },
        }
    )  # fmt: skip
    train_bands(Manifest(tuple(rows), folder), folder / "it", config, cache=folder / "cache")
    detector = load_detector(folder / "it", threads=1)
    return Bands(detector.file, detector, run_on(detector, folder))


def run_on(detector: Detector, folder: Path, *, maps: bool = False) -> exported.GraphRunner:
    path = folder / f"{'maps' if maps else 'plain'}.onnx"
    onnx_file.write_onnx(detector, path, maps=maps)
    return exported.GraphRunner(path, threads=1)


def changed(bands: Bands, tensors: dict[str, Any] | None = None, **more: Any) -> Detector:
    """The detector with another part."""
    (branch,) = bands.file.branches
    if tensors is not None:
        branch = replace(branch, tensors=tensors, head=more.pop("head", "bands"))
    return Detector(replace(bands.file, branches=(branch,), **more), threads=1)


def run(
    graph: exported.GraphRunner,
    detector: Detector,
    images: Sequence[NDArray[np.uint8]],
    files: Sequence[tuple[str, int | None]],
) -> dict[str, NDArray[Any]]:
    """Run a batch of images with equally many windows of one size."""
    chosen = export.windows_of(detector)
    return graph(
        np.stack([export.cut_windows(pixels, chosen) for pixels in images]),
        side=[min(pixels.shape[:2]) for pixels in images],
        quality=[quality for _, quality in files],
        band=[compression_band(*file) for file in files],
    )


def differences(
    out: dict[str, NDArray[Any]],
    detector: Detector,
    pixels: NDArray[np.uint8],
    file: tuple[str, int | None],
    k: int = 0,
) -> str:
    """Compare image k of a batch with the detector; return where it was ranked."""
    similarity, traits = detector.measure_pixels(pixels, file[1], file[0])
    np.testing.assert_allclose(out["similarity"][k], similarity, rtol=0, atol=1e-5)
    expected = exported._probabilities(detector, similarity, traits)
    np.testing.assert_allclose(out["probability"][k], expected, rtol=0, atol=1e-4)
    for name, value in zip(export.MEASURED, out["traits"][k], strict=True):
        assert value == pytest.approx(traits[TRAITS.index(name)], rel=1e-4, abs=1e-4), name
    rates = detector.rates(similarity, traits)
    if rates is None:
        return ""
    np.testing.assert_allclose(out["false_positive_rate"][k], rates.own, rtol=0, atol=1e-6)
    assert out["joint_rate"][k] == pytest.approx(rates.joint, abs=1e-6)
    return rates.stratum


# --- the same numbers ----------------------------------------------------------------------------


def test_the_detector_is_what_is_to_be_tested(bands: Bands) -> None:
    (branch,) = bands.file.branches
    assert branch.head == "bands"
    assert branch.tensors["masks"].shape[0] == len(BANDS)
    assert {"basis", "shrink"} <= set(branch.tensors)
    assert (branch.spectrum["parts"], branch.spectrum["coherence"]) == (3, True)
    assert bands.detector.calibrations["built-in"].learned is not None
    # In every band another answer.
    pixels = make_natural(150, 130, seed=2)
    scores = {tuple(bands.detector.measure_pixels(pixels, q, f)[0]) for f, q in FILES}
    assert len(scores) == len(BANDS)


@pytest.mark.parametrize("size", SIZES)
def test_one_image_of_every_band(bands: Bands, size: tuple[int, int]) -> None:
    pixels = make_natural(*size, seed=3)
    seen = set()
    for file in FILES:
        out = run(bands.graph, bands.detector, [pixels], [file])
        seen.add(differences(out, bands.detector, pixels, file))
    assert len(seen) >= 4


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_of_unlike_bands_gives_what_each_image_gives(
    bands: Bands, size: tuple[int, int]
) -> None:
    pattern = ("grid", "ring", "")
    images = [make_natural(*size, seed=20 + k) for k in range(len(FILES))]
    images = [plant(p, pattern[k % 3], k) if pattern[k % 3] else p for k, p in enumerate(images)]
    out = run(bands.graph, bands.detector, images, FILES)
    for k, (pixels, file) in enumerate(zip(images, FILES, strict=True)):
        differences(out, bands.detector, pixels, file, k)
        alone = run(bands.graph, bands.detector, [pixels], [file])
        for name, values in alone.items():
            np.testing.assert_allclose(out[name][k], values[0], rtol=1e-5, atol=1e-5)


def test_files(bands: Bands, tmp_path: Path) -> None:
    images = []
    for k, (format_, quality) in enumerate(FILES):
        path = tmp_path / f"{k}.{format_.lower()}"
        options = {} if quality is None else {"quality": quality}
        Image.fromarray(make_natural(200 + 10 * k, 240, seed=k)).save(path, format_, **options)
        images.append(path)
    (tmp_path / "none.png").write_text("no image")
    found = exported.verify(bands.graph, bands.detector, [*images, tmp_path / "none.png"])
    assert found.same, found
    assert found.images == len(FILES)
    assert found.left_out == {"not_an_image": 1}
    assert found.similarity <= exported.TOLERANCE
    assert found.own_rates_differ == found.joint_rates_differ == found.wrong_ranks == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_segments_of_equal_energy_keep_their_order(bands: Bands, seed: int) -> None:
    # White dots on black: levels and sums are exact, and many segments have as many dots.
    rng = np.random.default_rng(seed)
    dots = (rng.uniform(size=(96, 200)) < 0.003).astype(np.uint8) * 255
    pixels = np.repeat(dots[..., None], 3, axis=2)
    planes = luma_chroma(pixels[None, :, :96])
    energies = segment_energies(bank_residual(planes[0])[0, 0], 32, 24)
    assert len(set(energies.tolist())) < len(energies)
    out = run(bands.graph, bands.detector, [pixels], FILES[:1])
    differences(out, bands.detector, pixels, FILES[0])


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_images_and_flat_parts(bands: Bands, level: int) -> None:
    pixels = make_natural(96, 96, seed=4)
    for rows in (64, 96):
        pixels[:rows] = level
        out = run(bands.graph, bands.detector, [pixels], FILES[:1])
        differences(out, bands.detector, pixels, FILES[0])


def test_the_quietest_segments_are_told_over_all_windows(bands: Bands) -> None:
    # A row of three windows: one noisy, one smooth, one between. All of a window's segments fall
    # into one part, so the luma of each part is that of one window alone.
    rng = np.random.default_rng(0)
    windows = np.stack(
        [
            np.clip(128 + rng.normal(scale=scale, size=(96, 96, 1)), 0, 255).round() * np.ones(3)
            for scale in (20, 1, 6)
        ]
    ).astype(np.uint8)
    given: dict[str, Any] = {"side": [96], "band": [1]}
    together = bands.graph(windows[None], **given)["features"][0]
    # With one window each part holds a third of its segments, but all are alike.
    each = [bands.graph(window[None, None], **given)["features"][0] for window in windows]
    for part, window in enumerate((1, 2, 0)):
        own = [each[window][4 * k : 4 * k + 4] for k in range(3)]
        np.testing.assert_allclose(
            together[4 * part : 4 * part + 4], np.mean(own, axis=0), atol=1e-5
        )


def test_a_band_that_is_not_known_is_that_without_a_trace(bands: Bands) -> None:
    pixels = make_natural(96, 96, seed=5)[None, None]
    known = bands.graph(pixels, side=[96], band=[0])
    other = bands.graph(pixels, side=[96], band=[3])
    for unknown in ({"band": [None]}, {"band": [float("nan")]}, {"band": [-1.0]}, {}):
        for name, values in bands.graph(pixels, side=[96], **unknown).items():
            np.testing.assert_array_equal(values, known[name], err_msg=name)
    assert not np.array_equal(known["similarity"], other["similarity"])
    # Beyond the last there is none.
    most = bands.graph(pixels, side=[96], band=[4])
    for name, values in bands.graph(pixels, side=[96], band=[np.inf]).items():
        np.testing.assert_array_equal(values, most[name], err_msg=name)
    with pytest.raises(UsageError, match="depend on the side"):
        bands.graph(pixels, band=[0])


def test_maps_add_up_and_are_the_heads_own(bands: Bands, tmp_path: Path) -> None:
    graph = run_on(bands.detector, tmp_path, maps=True)
    pixels = make_natural(150, 130, seed=6)
    out = run(graph, bands.detector, [pixels] * len(FILES), FILES)
    np.testing.assert_allclose(out["maps"].sum(axis=(2, 3, 4)), out["similarity"], atol=1e-5)
    for k, (format_, quality) in enumerate(FILES):
        analyser = bands.detector._analyser
        shown = analyser.maps(analyser.analyse(pixels, format_, quality))
        for g, name in enumerate(bands.detector.generators):
            planes = [float(plane.values.sum(dtype=np.float64)) for plane in shown[name].planes]
            np.testing.assert_allclose(out["maps"][k, g].sum(axis=(1, 2)), planes, atol=1e-5)


# --- ranks ---------------------------------------------------------------------------------------


def test_the_joint_rate_ranks_the_learned_number(bands: Bands) -> None:
    assert bands.file.calibration is not None
    arrays = {name: np.asarray(a, np.float64) for name, a in bands.file.calibration.items()}
    photos = arrays["real_similarities"]
    band = arrays["real_traits"][:, TRAITS.index("band")].astype(int)

    def number_of(row: NDArray[np.float64], b: int) -> float:
        """Odds of all kinds of generated images together, as a logarithm."""
        kinds = zip(arrays["joint_weights"][b], arrays["joint_offsets"][b], strict=True)
        return math.log(sum(math.exp(w @ row + offset) for w, offset in kinds))

    numbers = np.array([number_of(row, b) for b, row in zip(band, photos, strict=True)])
    strata = json.loads(bands.graph.metadata["strata"])
    pixels = make_natural(150, 130, seed=8)
    out = run(bands.graph, bands.detector, [pixels] * len(FILES), FILES)
    for k, file in enumerate(FILES):
        b = compression_band(*file)
        row = strata[int(out["stratum"][k])]
        (leaf,) = [
            leaf
            for leaf in bands.detector.calibrations["built-in"].tree.leaves()
            if leaf.words == row["photos_are"]
        ]
        number = number_of(out["similarity"][k].astype(np.float64), b)
        expected = (1 + (numbers[leaf.members] >= number).sum()) / (1 + len(leaf.members))
        assert out["joint_rate"][k] == pytest.approx(expected, abs=1e-6)


def test_a_learned_number_equal_to_a_photos_counts(bands: Bands, tmp_path: Path) -> None:
    pixels = make_natural(96, 96, seed=9)
    similarity = bands.graph(pixels[None, None], side=[96], band=[2])["similarity"][0]
    assert bands.file.calibration is not None
    traits = np.full((4, len(TRAITS)), np.nan, np.float32)
    traits[:, TRAITS.index("band")] = 2
    scores = np.stack([similarity] * 4)
    weights = bands.file.calibration["joint_weights"][2]
    odds = np.exp(weights @ similarity + bands.file.calibration["joint_offsets"][2])
    step = np.float32(2e-7) * np.sign(odds @ weights)
    scores[1] -= step
    scores[2] += step
    scores[3, 0] = np.nan  # no number without all scores
    arrays = {
        "real_similarities": scores, "real_traits": traits,
        **{name: bands.file.calibration[name] for name in ("joint_weights", "joint_offsets")},
    }  # fmt: skip
    graph = run_on(changed(bands, calibration=arrays, config={"name": "few"}), tmp_path)
    out = graph(pixels[None, None], band=[2])
    assert out["joint_rate"][0] == pytest.approx(3 / 4)


def test_without_a_learned_number_the_best_rank_counts(bands: Bands, tmp_path: Path) -> None:
    assert bands.file.calibration is not None
    arrays = {k: v for k, v in bands.file.calibration.items() if not k.startswith("joint_")}
    arrays |= {name: arrays[name][: len(bands.file.generators)] for name in USUAL_ARRAYS[:2]}
    detector = changed(bands, calibration=arrays)
    graph = run_on(detector, tmp_path)
    pixels = plant(make_natural(150, 130, seed=10), "ring")
    out = run(graph, detector, [pixels] * len(FILES), FILES)
    for k, file in enumerate(FILES):
        differences(out, detector, pixels, file, k)


@pytest.mark.parametrize("learned", [True, False])
def test_what_is_usual_depends_on_what_an_image_shows(
    bands: Bands, tmp_path: Path, learned: bool
) -> None:
    """Side, band and noise move what is usual by more than photos differ."""
    arrays = dict(bands.file.calibration or {})
    if not learned:
        arrays = {k: v for k, v in arrays.items() if not k.startswith("joint_")}
    kinds = len(bands.file.generators) + learned
    rng = np.random.default_rng(5)
    median = rng.normal(0, 0.05, (kinds, TERMS))
    high = median + rng.uniform(0, 0.02, (kinds, TERMS)) + np.eye(1, TERMS)
    arrays |= UsualScores(median, high, np.array([0.0, 4.0])).to_arrays()
    detector = changed(bands, calibration=arrays)
    graph = run_on(detector, tmp_path)
    flat = {**arrays, **{name: arrays[name] * np.eye(1, TERMS) for name in USUAL_ARRAYS[:2]}}
    without = changed(bands, calibration=flat)
    moved = 0
    for size in ((150, 130), (600, 520), (1100, 1040)):
        images = [make_natural(*size, seed=40 + k) for k in range(len(FILES))]
        out = run(graph, detector, images, FILES)
        for k, (pixels, file) in enumerate(zip(images, FILES, strict=True)):
            differences(out, detector, pixels, file, k)
            rates = without.rates(*detector.measure_pixels(pixels, file[1], file[0]))
            assert rates is not None
            moved += not np.allclose(rates.own, out["false_positive_rate"][k], atol=0.02)
    assert moved >= 9  # of 18: a term that went wrong would be seen


def test_photos_of_ones_own_rank_by_the_same_number(bands: Bands, tmp_path: Path) -> None:
    arrays = dict(bands.file.calibration or {})
    n = 40
    rng = np.random.default_rng(3)
    names = population_arrays(1)
    scores = arrays["real_similarities"][:n] + rng.normal(0, 0.5, (n, 2)).astype(np.float32)
    # Written when there was no band: such photos lie in the last part.
    traits = arrays["real_traits"][:n, : len(TRAITS) - 1]
    arrays |= dict(zip(names, (scores, traits, np.arange(n)), strict=True))
    config = {**bands.file.config, "populations": [{"name": "own"}]}
    detector = changed(bands, calibration=arrays, config=config)
    graph = run_on(detector, tmp_path)
    images = [make_natural(96, 96, seed=30 + k) for k in range(len(FILES))]
    images[::2] = [plant(pixels, "grid") for pixels in images[::2]]
    out = run(graph, detector, images, FILES)
    for k, file in enumerate(FILES):
        differences(out, detector, images[k], file, k)
    rows = json.loads(graph.metadata["strata"])
    assert {rows[int(k)]["population"] for k in out["stratum"]} == {"built-in", "own"}


# --- other detectors of the kind -----------------------------------------------------------------


def test_without_calibration_only_the_band_is_asked_for(bands: Bands, tmp_path: Path) -> None:
    detector = changed(bands, calibration=None)
    graph = run_on(detector, tmp_path)
    assert graph.inputs == ("windows", "band")
    pixels = make_natural(96, 96, seed=11)
    out = run(graph, detector, [pixels], FILES[4:5])
    differences(out, detector, pixels, FILES[4])
    assert set(out) == {"similarity", "probability", "traits", "features"}


def test_bands_that_share_arrays_and_have_no_basis(bands: Bands, tmp_path: Path) -> None:
    tensors = dict(bands.file.branches[0].tensors)
    del tensors["basis"], tensors["shrink"]
    tensors["mean"], tensors["a"] = tensors["mean"][:1], tensors["a"][2:3]
    detector = changed(bands, tensors)
    graph = run_on(detector, tmp_path, maps=True)
    pixels = make_natural(96, 96, seed=12)
    out = run(graph, detector, [pixels] * len(FILES), FILES)
    for k, file in enumerate(FILES):
        differences(out, detector, pixels, file, k)


@pytest.mark.parametrize("head", ["bands", "shared"])
def test_one_set_of_heads_in_strata_by_band(bands: Bands, tmp_path: Path, head: str) -> None:
    keep = slice(0, 1) if head == "bands" else 0
    tensors = {
        name: values if name in ("basis", "shrink") else values[keep]
        for name, values in bands.file.branches[0].tensors.items()
    }
    detector = changed(bands, tensors, head=head)
    graph = run_on(detector, tmp_path)
    assert "band" in graph.inputs  # for the photos and the joint number
    pixels = make_natural(64, 200, seed=13)
    out = run(graph, detector, [pixels] * len(FILES), FILES)
    np.testing.assert_array_equal(out["similarity"], out["similarity"][[0] * len(FILES)])
    seen = {differences(out, detector, pixels, file, k) for k, file in enumerate(FILES)}
    assert len(seen) >= 4
    bare = changed(bands, tensors, head=head, calibration=None)
    assert run_on(bare, tmp_path).inputs == ("windows",)


@pytest.mark.parametrize(("parts", "coherence"), [(1, True), (4, False)])
def test_parts_and_coherence_go_alone(
    bands: Bands, tmp_path: Path, parts: int, coherence: bool
) -> None:
    (branch,) = bands.file.branches
    config = {**branch.spectrum, "parts": parts, "coherence": coherence}
    channels = 4 * (parts + 2) + 3 * coherence
    rng = np.random.default_rng(0)

    def fitted(name: str, values: NDArray[Any]) -> NDArray[Any]:
        shape = (*values.shape[:-3], channels, *values.shape[-2:])
        return rng.uniform(0.1, 1, shape).astype(np.float16)

    tensors = {
        name: fitted(name, values) if values.ndim >= 4 else values
        for name, values in branch.tensors.items()
        if name not in ("basis", "shrink")
    }
    file = replace(bands.file, branches=(replace(branch, spectrum=config, tensors=tensors),))
    detector = Detector(file, threads=1)
    graph = run_on(detector, tmp_path)
    pixels = make_natural(330, 340, seed=14)
    out = run(graph, detector, [pixels], FILES[2:3])
    assert out["features"].shape[1] == channels
    similarity, _ = detector.measure_pixels(pixels, 90, "JPEG")
    np.testing.assert_allclose(out["similarity"][0], similarity, rtol=0, atol=1e-5)


# --- what it says, and the command ---------------------------------------------------------------


def test_what_a_graph_says_of_itself(bands: Bands) -> None:
    graph = onnx_file.export_onnx(bands.detector)
    assert graph == onnx_file.export_onnx(load_again(bands))
    model = onnx.load_model_from_string(graph)
    assert [entry.version for entry in model.opset_import] == [OPSET]
    assert all(node.domain == "" for node in model.graph.node)
    used = {name for node in model.graph.node for name in node.input}
    assert {entry.name for entry in model.graph.initializer} <= used
    assert {entry.name for entry in model.graph.input} <= used
    about = bands.graph.metadata
    assert json.loads(about["windows"]) == export.windows_of(bands.detector)
    assert json.loads(about["windows"])["recipe"] == "shared"
    assert set(json.loads(about["inputs"])) == {"windows", "side", "band"}
    assert "band" not in json.loads(about["traits"])  # it is given, not seen in windows
    (features,) = [entry for entry in model.graph.output if entry.name == "features"]
    sizes = [d.dim_value for d in features.type.tensor_type.shape.dim][1:]
    assert sizes == [23, 8, 4]
    assert "coherence" in features.doc_string


def load_again(bands: Bands) -> Detector:
    return Detector(bands.file, threads=1)


def test_the_commands(bands: Bands, tmp_path: Path) -> None:
    folder, file, photo = (tmp_path / name for name in ("it", "graph.onnx", "photo.jpg"))
    bands.file.save(folder)
    Image.fromarray(make_natural(150, 200, seed=15)).save(photo, quality=70)
    runner = CliRunner()
    done = runner.invoke(cli.app, ["export", "onnx", str(folder), "--out", str(file)])
    assert done.exit_code == 0, done.output
    done = runner.invoke(cli.app, ["export", "verify", str(file), str(folder), str(photo)])
    assert done.exit_code == 0, done.output
    assert "the same" in done.stdout


def test_openvino_gives_the_same(bands: Bands, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    openvino_file.write_openvino(bands.detector, tmp_path / "it.xml")
    runner = exported.GraphRunner(tmp_path / "it.xml", threads=1)
    images = [make_natural(*size, seed=16) for size in SIZES]
    found = exported.verify(runner, bands.detector, images)
    assert found.same, found
    for k, file in enumerate(FILES):
        out = run(runner, bands.detector, [images[0]], [file])
        similarity, _ = bands.detector.measure_pixels(images[0], file[1], file[0])
        np.testing.assert_allclose(
            out["similarity"][0], similarity, rtol=0, atol=1e-5, err_msg=str(k)
        )
