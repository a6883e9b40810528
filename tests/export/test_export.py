"""`masksim.export.graph`, `masksim.export.runner`: the graph is the detector, and says what it
is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import make_original_fixture as fixture  # type: ignore[import-not-found]
import masksim
from masksim.calibration import Calibration
from masksim.checkpoint import Branch, DetectorFile, population_arrays
from masksim.cli import main as cli
from masksim.detector import Detector
from masksim.errors import ImageError, ModelError, UsageError
from masksim.export import graph as export
from masksim.export import onnx as onnx_file
from masksim.export import openvino as openvino_file
from masksim.export import runner as exported
from masksim.load import load_detector
from masksim.preprocess import COLOUR_SPACES, shared_windows
from masksim.residual import OPSET, ResidualConfig, residual_onnx, weight_shapes
from masksim.traits import TRAITS

onnx = pytest.importorskip("onnx")

# On the oldest versions test_export_bands.py exports and compares.
pytestmark = pytest.mark.slow

BUNDLED = Path(masksim.__file__).parent / "weights" / "default" / "detector.json"
PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def run_on(
    detector: Detector, folder: Path, *, maps: bool = False, backend: Any = None
) -> exported.GraphRunner:
    """Export to a file, and load it."""
    path = folder / f"{'maps' if maps else 'plain'}.onnx"
    onnx_file.write_onnx(detector, path, maps=maps)
    return exported.GraphRunner(path, backend, threads=1)


def differences(out: dict[str, NDArray[Any]], detector: Detector, pixels: Any, k: int = 0) -> None:
    """Compare image k of a batch with the detector, all that both give."""
    similarity, traits = detector.measure_pixels(pixels, None)
    np.testing.assert_allclose(out["similarity"][k], similarity, atol=2e-6)
    rates = detector.rates(similarity, traits)
    assert rates is not None
    np.testing.assert_allclose(out["false_positive_rate"][k], rates.own, atol=1e-6)
    assert out["joint_rate"][k] == pytest.approx(rates.joint, abs=1e-6)
    by_name = dict(zip(export.MEASURED, out["traits"][k], strict=False))
    for name, value in by_name.items():
        assert value == pytest.approx(traits[TRAITS.index(name)], rel=1e-4, abs=1e-4), name


# --- the shared recipe ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector(trained: Any) -> Detector:
    return load_detector(trained.folder, threads=1)


@pytest.fixture(scope="module")
def graph(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> exported.GraphRunner:
    return run_on(detector, tmp_path_factory.mktemp("graph"))


def test_a_graph_is_its_detector_on_files(
    detector: Detector, graph: exported.GraphRunner, trained: Any
) -> None:
    val = trained.manifest.select("val")
    files = [val.file(row) for row in val.rows[::4]]
    found = exported.verify(graph, detector, files)
    assert found.same, found
    assert found.images == len(files) >= 8
    assert found.similarity < 2e-6
    assert not found.left_out
    assert found.wrong_ranks == found.levels_differ == 0


@pytest.mark.parametrize("size", [(560, 600), (512, 512), (270, 300), (256, 700), (900, 333)])
def test_images_of_any_size(
    detector: Detector,
    graph: exported.GraphRunner,
    natural_image: Callable[..., NDArray[np.uint8]],
    size: tuple[int, int],
) -> None:
    pixels = natural_image(*size, seed=5)
    windows = export.cut_windows(pixels, export.windows_of(detector))
    differences(graph(windows[None]), detector, pixels)


def test_a_batch_gives_what_each_image_gives(
    detector: Detector,
    graph: exported.GraphRunner,
    natural_image: Callable[..., NDArray[np.uint8]],
) -> None:
    images = [natural_image(300, 280, seed=k) for k in range(3)]
    chosen = export.windows_of(detector)
    batch = np.stack([export.cut_windows(pixels, chosen) for pixels in images])
    out = graph(batch)
    for k, pixels in enumerate(images):
        differences(out, detector, pixels, k)
        alone = graph(batch[k : k + 1])
        for name, values in alone.items():
            np.testing.assert_allclose(out[name][k], values[0], rtol=1e-5, atol=1e-5)
    assert len({float(s) for s in out["similarity"][:, 0]}) == 3


def test_a_window_said_twice_changes_nothing(
    graph: exported.GraphRunner, natural_image: Callable[..., NDArray[np.uint8]]
) -> None:
    window = natural_image(264, 256, seed=2)
    once, twice = graph(window[None, None]), graph(np.stack([window, window])[None])
    for name, values in once.items():
        np.testing.assert_allclose(twice[name], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [0, 255])
def test_a_flat_image(detector: Detector, graph: exported.GraphRunner, level: int) -> None:
    pixels = np.full((300, 300, 3), level, np.uint8)
    out = graph(export.cut_windows(pixels, export.windows_of(detector))[None])
    differences(out, detector, pixels)
    assert out["traits"][0][export.MEASURED.index("flat")] == 1


def test_maps_add_up_and_are_the_heads_own(
    detector: Detector,
    tmp_path: Path,
    natural_image: Callable[..., NDArray[np.uint8]],
) -> None:
    pixels = natural_image(264, 264, seed=3)
    out = run_on(detector, tmp_path, maps=True)(pixels[None, None])
    np.testing.assert_allclose(out["maps"].sum(axis=(2, 3, 4)), out["similarity"], atol=1e-6)
    shown = detector.similarity_maps(pixels)
    for g, name in enumerate(detector.generators):
        planes = [float(plane.values.sum(dtype=np.float64)) for plane in shown[name].planes]
        np.testing.assert_allclose(out["maps"][0, g].sum(axis=(1, 2)), planes, atol=1e-5)


def test_what_a_graph_says_of_itself(detector: Detector, graph: exported.GraphRunner) -> None:
    model = onnx.load_model_from_string(onnx_file.export_onnx(detector))
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [OPSET]
    assert {entry.domain for entry in model.opset_import} == {""}
    assert all(node.domain == "" for node in model.graph.node)
    used = {name for node in model.graph.node for name in node.input}
    assert {entry.name for entry in model.graph.initializer} <= used
    assert all(entry.doc_string for entry in (*model.graph.input, *model.graph.output))
    names = [entry.name for entry in model.graph.output]
    assert names == [
        "similarity", "probability", "false_positive_rate", "joint_rate", "stratum", "traits",
        "features",
    ]  # fmt: skip
    about = graph.metadata
    assert about["sha256"] == detector.sha256
    assert about["detector"] == detector.name
    assert about["version"] == masksim.__version__
    assert json.loads(about["generators"]) == list(detector.generators)
    assert set(json.loads(about["outputs"])) == set(names)
    assert json.loads(about["windows"])["recipe"] == "shared"
    strata = json.loads(about["strata"])
    assert [row["population"] for row in strata] == ["built-in"]
    assert strata[0]["photos"] == detector.sample_size
    assert strata[0]["photos_are"] == "all"


def test_the_same_detector_gives_the_same_bytes(detector: Detector, trained: Any) -> None:
    again = load_detector(trained.folder, threads=1)
    assert onnx_file.export_onnx(detector) == onnx_file.export_onnx(again)


def test_without_calibration_there_are_no_rates(
    trained: Any, tmp_path: Path, natural_image: Callable[..., NDArray[np.uint8]]
) -> None:
    bare = Detector(replace(trained.file, calibration=None), threads=1)
    runner = run_on(bare, tmp_path)
    pixels = natural_image(264, 264)
    out = runner(pixels[None, None])
    assert set(out) == {"similarity", "probability", "traits", "features"}
    np.testing.assert_allclose(out["similarity"][0], bare.similarities(pixels), atol=2e-6)
    found = exported.verify(runner, bare, [pixels])
    assert found.same
    assert found.joint_rate == 0


# --- ranks and strata ----------------------------------------------------------------------------

BANDS = [["energy", [1.0, 3.0]], ["side", [280.0]], ["quality", [75.0, 90.0]], ["chroma", [9e9]]]


def invented(
    trained: Any, seed: int = 0, *, holes: bool = False, second: bool = False, photos: int = 12
) -> Detector:
    """The trained heads with invented photos, in fine strata."""
    rng = np.random.default_rng(seed)
    config = {**trained.file.config, "strata": {"bands": BANDS, "photos": photos, "sources": 2}}
    arrays: dict[str, NDArray[Any]] = {}
    for k in range(1 + second):
        n = 400 if k == 0 else 150
        scores = rng.normal(0.02 * k, 0.05, size=(n, 2)).astype(np.float32)
        if holes:
            scores[::3, 1] = np.nan
        traits = np.full((n, len(TRAITS)), 1.0, np.float32)
        traits[:, TRAITS.index("energy")] = rng.uniform(0, 4.2, n)
        traits[:, TRAITS.index("side")] = rng.choice([270, 600], n)
        traits[:, TRAITS.index("quality")] = rng.choice([60, 80, 95, np.nan], n)
        names = population_arrays(k)
        arrays |= dict(zip(names, (scores, traits, rng.integers(0, 9, n)), strict=True))
    if second:
        config["populations"] = [{"name": "own"}]
    return Detector(replace(trained.file, config=config, calibration=arrays), threads=1)


def brute(similarity: NDArray[Any], photos: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Own and joint rates of one image by their definition, photo by photo."""
    own = [
        (1 + sum(x >= s for x in column[~np.isnan(column)])) / (1 + (~np.isnan(column)).sum())
        for s, column in zip(similarity, photos.T, strict=True)
    ]
    members = np.vstack([similarity, photos[~np.isnan(photos).any(axis=1)]])
    ranks = [
        sorted(int((members[:, g] >= member[g]).sum()) for g in range(members.shape[1]))[:2]
        for member in members
    ]
    return np.array(own), sum(rank <= ranks[0] for rank in ranks) / len(members)


def alike(used: Calibration, image: NDArray[Any]) -> NDArray[Any]:
    """Scores of the photos of an image's kind by the definition of `Strata`, photo by photo."""
    rows = list(range(len(used.real_scores)))
    for trait, cuts in used.strata.bands:
        assert not isinstance(cuts, int)
        column = TRAITS.index(trait)

        def place(value: float, cuts: tuple[float, ...] = cuts) -> int:
            return len(cuts) if np.isnan(value) else sum(cut <= value for cut in cuts)

        parts: list[list[int]] = [[] for _ in range(len(cuts) + 1)]
        for row in rows:
            parts[place(used.traits[row, column])].append(row)
        scored = [[r for r in part if not np.isnan(used.real_scores[r]).any()] for part in parts]
        if all(
            len(part) >= used.strata.photos
            and len(set(used.sources[part].tolist())) >= used.strata.sources
            for part in scored
        ):
            rows = parts[place(image[column])]
    return used.real_scores[rows]


@pytest.mark.parametrize(
    "options", [{}, {"holes": True}, {"second": True}, {"holes": True, "second": True}]
)
def test_rates_in_strata(
    trained: Any,
    tmp_path: Path,
    options: dict[str, bool],
) -> None:
    detector = invented(trained, **options)
    runner = run_on(detector, tmp_path)
    assert set(runner.inputs) == {"windows", "side", "quality"}
    strata = json.loads(runner.metadata["strata"])
    rng = np.random.default_rng(1)
    images = []
    for scale in (0.8, 1.5, 2.5, 4.0):  # from smooth to noisy, to come to unlike strata
        noise = 120 + rng.normal(scale=scale, size=(264, 264, 3))
        images.append(np.rint(noise).astype(np.uint8))
    cases = [
        (pixels, side, quality)
        for pixels in images
        for side, quality in ((270, None), (500, 60), (279, 75), (280, 89))
    ]
    out = runner(
        np.stack([pixels for pixels, *_ in cases])[:, None],
        side=[side for _, side, _ in cases],
        quality=[quality for *_, quality in cases],
    )
    seen = set()
    for k, (_, side, quality) in enumerate(cases):
        traits = np.full(len(TRAITS), np.nan)
        for name, value in zip(export.MEASURED, out["traits"][k], strict=True):
            traits[TRAITS.index(name)] = value
        traits[TRAITS.index("side")] = side
        traits[TRAITS.index("quality")] = np.nan if quality is None else quality
        similarity = out["similarity"][k].astype(np.float64)
        rates = detector.rates(similarity, traits)
        assert rates is not None
        np.testing.assert_allclose(out["false_positive_rate"][k], rates.own, atol=1e-6)
        assert out["joint_rate"][k] == pytest.approx(rates.joint, abs=1e-6)
        stratum = strata[out["stratum"][k]]
        assert (stratum["photos_are"], stratum["photos"]) == (rates.stratum, rates.photos)
        assert stratum["sources"] == rates.sources
        seen.add(rates.stratum)
        # And by definition, among the photos of the stratum that the graph names.
        used = detector.calibrations[stratum["population"]]
        own, joint = brute(similarity, alike(used, traits))
        np.testing.assert_allclose(out["false_positive_rate"][k], own, atol=1e-6)
        assert out["joint_rate"][k] == pytest.approx(joint, abs=1e-6)
    assert len(seen) >= 4, seen


def test_a_tree_of_depth_two_with_a_trait_passed_over(
    trained: Any, tmp_path: Path, natural_image: Callable[..., NDArray[np.uint8]]
) -> None:
    cut = 600.3
    assert float(np.float32(cut)) < cut  # the nearest number in single precision lies below it
    bands = [["brightness", [0.0]], ["side", [300.0, cut]], ["quality", [75.0]]]
    rng = np.random.default_rng(5)
    traits = np.full((180, len(TRAITS)), np.nan, np.float32)
    traits[:, TRAITS.index("brightness")] = 100  # one of the two parts would be empty
    traits[:, TRAITS.index("side")] = np.repeat([200, 400, 800], 60)
    traits[:, TRAITS.index("quality")] = np.repeat([60, 90, 90, 90, 60, np.nan], 30)
    names = population_arrays(0)
    scores = rng.normal(0.02, 0.05, size=(180, 2)).astype(np.float32)
    arrays = dict(zip(names, (scores, traits, np.arange(180)), strict=True))
    strata = {"bands": bands, "photos": 20, "sources": 5}
    file = replace(trained.file, config={"strata": strata}, calibration=arrays)
    runner = run_on(Detector(file, threads=1), tmp_path)
    assert runner.inputs == ("windows", "side", "quality")
    # Of a middling size there are photos of one quality alone: that part stays whole.
    expected = {
        "shorter side below 300 pixels, quality below 75": range(30),
        "shorter side below 300 pixels, quality 75 or more": range(30, 60),
        "shorter side 300 to 600.3 pixels": range(60, 120),
        "shorter side 600.3 pixels or more, quality below 75": range(120, 150),
        "shorter side 600.3 pixels or more, quality 75 or more": range(150, 180),
    }
    rows = json.loads(runner.metadata["strata"])
    assert {row["photos_are"]: row["photos"] for row in rows} == {
        words: len(members) for words, members in expected.items()
    }
    small, middle, large = (
        [words for words in expected if words.startswith(f"shorter side {size}")]
        for size in ("below", "300", "600.3 pixels or")
    )
    above = float(np.nextafter(np.float32(cut), np.float32(np.inf)))
    cases: list[tuple[float, float | None, str]] = [
        (299, 74, small[0]),
        (299, 75, small[1]),
        (299, None, small[1]),
        (300, 10, middle[0]),
        (float(np.float32(cut)), None, middle[0]),
        (above, 74, large[0]),
        (above, None, large[1]),
        (9e9, 100, large[1]),
        (np.nan, 74, large[0]),  # what is not known lies in the last part
        (np.nan, None, large[1]),
    ]
    pixels = natural_image(264, 264, seed=4)
    out = runner(
        np.stack([pixels] * len(cases))[:, None],
        side=[side for side, *_ in cases],
        quality=[quality for _, quality, _ in cases],
    )
    for k, (_, _, words) in enumerate(cases):
        assert rows[out["stratum"][k]]["photos_are"] == words
        similarity = out["similarity"][k].astype(np.float64)
        own, joint = brute(similarity, scores[list(expected[words])].astype(np.float64))
        np.testing.assert_allclose(out["false_positive_rate"][k], own, atol=1e-6)
        assert out["joint_rate"][k] == pytest.approx(joint, abs=1e-6)
    assert len(set(out["joint_rate"].tolist())) >= 3


def test_a_trait_is_asked_for_only_where_rates_depend_on_it(
    trained: Any, tmp_path: Path, natural_image: Callable[..., NDArray[np.uint8]]
) -> None:
    for photos, inputs in ((210, ()), (120, ("side",)), (12, ("side", "quality"))):
        runner = run_on(invented(trained, photos=photos), tmp_path)
        assert runner.inputs == ("windows", *inputs)
    with pytest.raises(UsageError, match="depend on the side"):
        runner(natural_image(264, 264)[None, None])


def test_a_score_equal_to_a_photos_counts(
    trained: Any, tmp_path: Path, natural_image: Callable[..., NDArray[np.uint8]]
) -> None:
    pixels = natural_image(264, 264, seed=9)
    first = run_on(invented(trained, photos=1000), tmp_path)
    similarity = first(pixels[None, None])["similarity"][0]
    arrays = {"real_similarities": np.stack([similarity, similarity - 1, similarity + 1])}
    detector = Detector(replace(trained.file, calibration=arrays), threads=1)
    out = run_on(detector, tmp_path)(pixels[None, None])
    np.testing.assert_allclose(out["false_positive_rate"][0], [3 / 4, 3 / 4])
    assert out["joint_rate"][0] == pytest.approx(3 / 4)


# --- heads of the original -----------------------------------------------------------------------


def original(
    name: str, kind: Any = "linear3x3", window: int = 64, masks: int = 2, colour: str = "RGB"
) -> Branch:
    """A head of the original with the fixture's numbers; a DnCNN is small."""
    rng = np.random.default_rng(4)
    config = ResidualConfig.dncnn(4, 8) if kind == "DnCNN" else ResidualConfig(kind)
    weights = {
        key: np.abs(rng.normal(0.3, 0.2, shape)).astype(np.float32)
        if key.endswith("running_var")
        else rng.normal(0, 0.2, shape).astype(np.float32)
        for key, shape in weight_shapes(config).items()
    }
    arrays = fixture.state("none" if kind == "DnCNN" else kind, window - 2 * config.margin, masks)
    if kind == "linear3x3":
        weights = {"0.weight": arrays.pop("preproc.0.weight")}
    else:  # the numbers of a fixed filter are no weights here
        arrays = {key: value for key, value in arrays.items() if not key.startswith("preproc.")}
    return Branch(
        config, weights, residual_onnx(config, weights),
        {"window": window, "colour": colour, "windows": 1, "aligned": True},
        {"kind": "log", "epsilon": 1e-10}, "original", (name,), arrays,
    )  # fmt: skip


def of_branches(*branches: Branch, **more: Any) -> Detector:
    return Detector(DetectorFile({"name": "originals"}, branches, **more), threads=1)


@pytest.mark.parametrize("space", ["RGB", "YCbCr"])
def test_originals_give_the_originals_numbers(tmp_path: Path, space: str) -> None:
    # In the file: computed in double precision, by torch's own layers, without this package.
    expected = json.loads(fixture.EXPECTED.read_text())[space]
    colour = "RGB" if space == "RGB" else "YCbCr-BT601-studio-8bit"
    detector = of_branches(original("sd1", colour=colour))
    runner = run_on(detector, tmp_path, maps=True)
    pixels = fixture.image(*fixture.IMAGE_SIZE)
    out = runner(export.cut_windows(pixels, export.windows_of(detector))[None])
    assert set(out) == {"similarity", "probability", "traits", "maps"}
    assert out["similarity"][0, 0] == pytest.approx(expected["similarity"], abs=1e-6)
    assert out["probability"][0, 0] == pytest.approx(expected["prob"], abs=1e-6)
    shown = 3 * out["maps"][0, 0]
    np.testing.assert_allclose(
        shown.sum(axis=(1, 2)), expected["map_sum_over_freq_per_channel"], atol=3e-6
    )
    for at, value in expected["map_samples"].items():
        assert shown[tuple(map(int, at.split(",")))] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("window", [40, 41])
def test_all_kinds_of_originals_in_one_graph(tmp_path: Path, window: int) -> None:
    branches = [
        original("one", "linear3x3", window, 3, COLOUR_SPACES[0]),
        original("two", "cross_diff", window, 1, COLOUR_SPACES[1]),
        original("three", "none", window, 2, COLOUR_SPACES[2]),
        original("four", "DnCNN", window, 2, COLOUR_SPACES[1]),
    ]
    detector = of_branches(*branches)
    runner = run_on(detector, tmp_path)
    assert runner.inputs == ("windows",)
    # Not seed 2: there a frequency of a cross difference is exactly 0, and its rounding counts.
    images = [fixture.image(90, 77 + 8 * k, seed=k) for k in (0, 1, 3)]
    chosen = export.windows_of(detector)
    out = runner(np.stack([export.cut_windows(pixels, chosen) for pixels in images]))
    for k, pixels in enumerate(images):
        np.testing.assert_allclose(out["similarity"][k], detector.similarities(pixels), atol=5e-6)
    assert exported.verify(runner, detector, images).same
    with pytest.raises(ModelError, match="different sizes"):  # a DnCNN takes a margin off
        onnx_file.export_onnx(detector, maps=True)
    same = of_branches(*branches[:3])
    out = run_on(same, tmp_path, maps=True)(export.cut_windows(images[0], chosen)[None])
    shown = same.similarity_maps(images[0])
    for g, name in enumerate(same.generators):
        for c, plane in enumerate(shown[name].planes):
            np.testing.assert_allclose(out["maps"][0, g, c], plane.values, atol=2e-6)


def test_calibrated_originals_have_rates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 0.05, size=(50, 1)).astype(np.float32)
    arrays: dict[str, NDArray[Any]] = {"real_similarities": scores}
    detector = of_branches(original("sd1"), calibration=arrays)
    pixels = fixture.image(80, 80)
    runner = run_on(detector, tmp_path)
    out = runner(export.cut_windows(pixels, export.windows_of(detector))[None])
    differences(out, detector, pixels)
    assert out["joint_rate"][0] == out["false_positive_rate"][0, 0]  # one generator, one test
    # A stratum of a trait that such heads do not have is that of the unknown, the last.
    bands = {"bands": [["distance", [0.0]]], "photos": 5, "sources": 1}
    traits = np.ones((50, len(TRAITS)), np.float32)
    traits[:30, TRAITS.index("distance")] = np.nan
    traits[30:, TRAITS.index("distance")] = -1
    arrays |= {"real_traits": traits, "real_sources": np.arange(50)}
    parted = Detector(
        replace(detector.file, config={"strata": bands}, calibration=arrays), threads=1
    )
    runner = run_on(parted, tmp_path)
    out = runner(export.cut_windows(pixels, export.windows_of(parted))[None])
    differences(out, parted, pixels)
    row = json.loads(runner.metadata["strata"])[int(out["stratum"][0])]
    assert row["photos"] == 30


def test_what_is_no_single_graph_is_refused(trained: Any) -> None:
    shared = DetectorFile.load(trained.folder).branches[0]
    for branches in (
        (original("one"), shared),
        (original("one"), original("two", window=48)),
        (shared, replace(shared, generators=("a", "b"))),
    ):
        with pytest.raises(ModelError, match="one graph holds"):
            onnx_file.export_onnx(of_branches(*branches))


def test_a_small_image_is_refused(detector: Detector) -> None:
    for chosen in (export.windows_of(detector), export.windows_of(of_branches(original("a")))):
        with pytest.raises(ImageError) as caught:
            export.cut_windows(np.zeros((63, 300, 3), np.uint8), chosen)
        assert caught.value.code == "too_small"


# --- the check -----------------------------------------------------------------------------------


def tampered(source: Path, target: Path, name: str = "probability") -> Path:
    """Move an output a little."""
    model = onnx.load(source)
    (node,) = [node for node in model.graph.node if name in node.output]
    node.output[0] = "moved"
    amount = onnx.helper.make_node("Constant", [], ["amount"], value_float=0.001)
    model.graph.node.extend([amount, onnx.helper.make_node("Add", ["moved", "amount"], [name])])
    onnx.save(model, target)
    return target


def test_a_changed_graph_is_found_out(detector: Detector, tmp_path: Path, trained: Any) -> None:
    val = trained.manifest.select("val")
    files = [val.file(row) for row in val.rows[:3]]
    onnx_file.write_onnx(detector, tmp_path / "good.onnx")
    for name, same in (("similarity", False), ("joint_rate", False), ("probability", True)):
        path = tampered(tmp_path / "good.onnx", tmp_path / "bad.onnx", name)
        found = exported.verify(exported.GraphRunner(path), detector, files)
        assert found.same is same, name
        assert getattr(found, name) == pytest.approx(0.001, abs=1e-5)
    assert exported.verify(
        exported.GraphRunner(tmp_path / "good.onnx"), detector, files, tolerance=1e-3
    ).same
    # Right rates, but said to be of other photos.
    model = onnx.load(tmp_path / "good.onnx")
    (strata,) = [entry for entry in model.metadata_props if entry.key == "masksim.strata"]
    strata.value = strata.value.replace('"all"', '"others"')
    onnx.save(model, tmp_path / "bad.onnx")
    found = exported.verify(exported.GraphRunner(tmp_path / "bad.onnx"), detector, files)
    assert (found.wrong_ranks, found.joint_rates_differ) == (3, 0)
    assert not found.same


def test_a_graph_of_another_detector_is_refused(
    detector: Detector, graph: exported.GraphRunner, trained: Any
) -> None:
    file = replace(trained.file, sha256="0" * 64)
    with pytest.raises(ModelError) as caught:
        exported.verify(graph, Detector(file), [])
    assert caught.value.code == "model_hash"
    other = Detector(replace(detector.file, calibration=None))
    with pytest.raises(UsageError, match="rates are of the photos"):
        exported.verify(graph, other, [])
    with pytest.raises(UsageError, match="no image to compare"):
        exported.verify(graph, detector, [np.zeros((8, 8, 3), np.uint8)])


def test_what_cannot_be_run(tmp_path: Path, detector: Detector, graph: Any) -> None:
    with pytest.raises(ModelError) as caught:
        exported.GraphRunner(tmp_path / "missing.onnx")
    assert caught.value.code == "model_not_found"
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ModelError, match="is invalid"):
        exported.GraphRunner(tmp_path / "text.onnx")
    config = ResidualConfig("cross_diff")
    (tmp_path / "foreign.onnx").write_bytes(residual_onnx(config, {}))
    with pytest.raises(ModelError, match="no graph of masksim"):
        exported.GraphRunner(tmp_path / "foreign.onnx")
    with pytest.raises(UsageError, match="unknown backend"):
        exported.GraphRunner(tmp_path / "text.onnx", "abacus")  # type: ignore[arg-type]
    (tmp_path / "text.xml").write_text("<a/>")
    with pytest.raises(UsageError, match="run by openvino"):
        exported.GraphRunner(tmp_path / "text.xml", "ort-cpu")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(UsageError, match="CUDAExecutionProvider"):
            exported.GraphRunner(tmp_path / "text.onnx", "ort-cuda")
    with pytest.raises(ModelError, match="the graph failed"):
        graph(np.zeros((1, 1, 16, 16, 3), np.uint8))  # smaller than a segment


@pytest.mark.parametrize("maps", [False, True])
def test_openvino_gives_the_same(
    detector: Detector, tmp_path: Path, trained: Any, maps: bool
) -> None:
    pytest.importorskip("openvino")
    made = openvino_file.write_openvino(detector, tmp_path / "ir", maps=maps)
    path = Path(made["files"][0])
    assert path == tmp_path / "ir" / f"{detector.name}.xml"
    assert sum(Path(file).stat().st_size for file in made["files"]) == made["bytes"]
    runner = exported.GraphRunner(path, threads=1)
    assert runner.backend == "openvino"
    val = trained.manifest.select("val")
    files = [val.file(row) for row in val.rows[::8]]
    found = exported.verify(runner, detector, files)
    assert found.same, found
    onnx_file.write_onnx(detector, tmp_path / "graph.onnx")
    assert exported.verify(
        exported.GraphRunner(tmp_path / "graph.onnx", "openvino"), detector, files
    ).same
    strata = invented(trained, holes=True, second=True)
    openvino_file.write_openvino(strata, tmp_path / "strata.xml")
    found = exported.verify(exported.GraphRunner(tmp_path / "strata.xml"), strata, files)
    assert found.same, found


def test_openvino_runs_originals(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    detector = of_branches(
        *(
            original(f"g{k}", kind, 41, 2, colour)
            for k, (kind, colour) in enumerate(
                zip(("linear3x3", "DnCNN", "none"), COLOUR_SPACES, strict=True)
            )
        )
    )
    openvino_file.write_openvino(detector, tmp_path / "o.xml")
    images = [fixture.image(60, 70, seed=k) for k in (0, 1, 3)]
    assert exported.verify(exported.GraphRunner(tmp_path / "o.xml"), detector, images).same


def test_without_openvino_the_message_says_so(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ModelError) as caught:
        openvino_file.write_openvino(detector, tmp_path)
    assert caught.value.code == "openvino_missing"
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModelError) as caught:
        onnx_file.export_onnx(detector)
    assert caught.value.code == "onnx_missing"


# --- the command ---------------------------------------------------------------------------------


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments)])


def test_the_commands(trained: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "graph.onnx"
    done = command("onnx", trained.folder, "--out", file, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["bytes"] == file.stat().st_size
    assert made["files"] == [str(file)]
    val = trained.manifest.select("val")
    photo = val.file(val.rows[0])
    (tmp_path / "not.jpg").write_text("no image")
    done = command("verify", file, trained.folder, photo, tmp_path / "not.jpg", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["same"], found["images"]) == (True, 1)
    assert found["left_out"] == {"not_an_image": 1}
    assert 0 <= found["similarity"] < 2e-6
    bad = tampered(file, tmp_path / "bad.onnx", "similarity")
    done = command("verify", bad, trained.folder, photo)
    assert done.exit_code == 1
    assert "NOT the same" in done.stdout
    assert command("verify", file, trained.folder).exit_code == UsageError.exit_code
    missing = command("verify", tmp_path / "none.onnx", trained.folder, photo)
    assert missing.exit_code == ModelError.exit_code
    done = command("onnx", trained.folder, "--out", file / "x.onnx")
    assert done.exit_code == UsageError.exit_code
    assert "cannot write" in done.stderr


def test_verify_on_a_manifest(trained: Any, tmp_path: Path) -> None:
    from masksim.data.manifest import write_manifest

    folder = trained.manifest.root
    val = trained.manifest.select("val")
    listed = tmp_path / "list.csv"
    write_manifest(listed, [replace(row, path=str(Path(folder) / row.path)) for row in val.rows])
    file = tmp_path / "graph.onnx"
    assert command("onnx", trained.folder, "--out", file).exit_code == 0
    done = command("verify", file, trained.folder, "--manifest", listed, "--count", 3)
    assert done.exit_code == 0, done.output
    assert "images: 3" in done.stdout
    assert "the same" in done.stdout


# --- the one inside the package ------------------------------------------------------------------


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the package holds no trained detector")
def test_the_packages_own_detector(
    tmp_path: Path, natural_image: Callable[..., NDArray[np.uint8]]
) -> None:
    detector = load_detector(threads=1)
    runner = run_on(detector, tmp_path)
    images: list[Any] = [natural_image(*size) for size in ((700, 1100), (256, 256), (300, 900))]
    path = tmp_path / "photo.jpg"
    Image.fromarray(images[0]).save(path, quality=70)
    found = exported.verify(runner, detector, [*images, path])
    assert found.same, found
    assert found.images == 4
    assert found.similarity < 2e-6
    assert runner.inputs == ("windows", "luma_windows", "side", "band")  # as the page says


# --- the page ------------------------------------------------------------------------------------


def recipes() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_recipe_of_the_page_chooses_the_same_windows() -> None:
    code = next(text for text in recipes() if "def choose_windows" in text)
    imports = re.findall(r"^\s*(?:import|from) (\S+)", code, re.MULTILINE)
    assert imports == ["numpy"]
    scope: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), scope)
    rng = np.random.default_rng(0)
    sizes = [(512, 512), (256, 256), (519, 2000), (511, 900), (900, 300), (4000, 3000), (1536, 530)]
    sizes += [(int(h), int(w)) for h, w in rng.integers(256, 2500, (30, 2))]
    for height, width in sizes:
        # A pixel tells where it stands, so equal pixels are equal corners.
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([y % 256, x % 256, y // 256 * 16 + x // 256], axis=-1).astype(np.uint8)
        corners, h, w = shared_windows(
            height, width, 512, 4, smallest=256, region=1536, spacing=128
        )
        expected = np.stack([pixels[t : t + h, le : le + w] for t, le in corners])
        np.testing.assert_array_equal(scope["choose_windows"](pixels), expected)
    with pytest.raises(ValueError, match="small"):
        scope["choose_windows"](np.zeros((255, 900, 3), np.uint8))


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the package holds no trained detector")
def test_the_example_of_the_page_runs(
    tmp_path: Path,
    natural_image: Callable[..., NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    detector = load_detector(threads=1)
    onnx_file.write_onnx(detector, tmp_path / "masksim.onnx")
    pixels = natural_image(560, 900)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    assert len(recipes()) == 2
    for code in recipes():
        assert not re.search(r"^\s*(import|from) masksim", code, re.MULTILINE)
        exec(compile(code, str(PAGE), "exec"), scope)
    joint = float(capsys.readouterr().out.split()[-1])
    similarity, traits = detector.measure_pixels(pixels)
    rates = detector.rates(similarity, traits)
    assert rates is not None
    assert joint == pytest.approx(rates.joint, abs=1e-5)
