"""Runs an exported graph, and compares it with the detector that it was made of."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from masksim import verdict
from masksim.errors import ImageError, ModelError, UsageError, counted
from masksim.export.graph import cut_windows, windows_of
from masksim.export.onnx import PREFIX
from masksim.export.onnx import metadata as read_metadata
from masksim.export.openvino import import_openvino
from masksim.image import load_image
from masksim.model import probability
from masksim.traits import TRAITS, bands_of, compression_band

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.calibration import Rates
    from masksim.detector import Detector

    Outputs = dict[str, NDArray[Any]]

Backend: TypeAlias = Literal["ort-cpu", "ort-cuda", "ort-openvino", "openvino"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

TOLERANCE = 1e-5
"""How far a similarity may be from the detector's, by default."""

_RATES = 1e-6  # rates are ratios of small integers, in single precision
_SIDE = TRAITS.index("side")


class GraphRunner:
    """Runs an exported graph.

    Parameters
    ----------
    path
        ``.onnx``, or OpenVINO's ``.xml``.
    backend
        One of `BACKENDS`; by default ``openvino`` for ``.xml``, else ``ort-cpu``.
    threads
        By default the runtime's choice.

    Attributes
    ----------
    metadata
        Text by name; those of several values are JSON.
    inputs
        Names: ``windows``, ``luma_windows`` of a detector with a learned residual, and ``side``,
        ``quality`` and ``band`` where anything depends on them.

    Raises
    ------
    ModelError
        Code ``model_not_found``, ``openvino_missing``, or ``model_invalid`` if it is no graph of
        this package.
    UsageError
        An unknown backend, or one that is not available here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: Backend | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        source = Path(path)
        if not source.is_file():
            raise ModelError(f"there is no file {source}", code="model_not_found")
        ir = source.suffix.lower() == ".xml"
        self.backend = backend or ("openvino" if ir else "ort-cpu")
        if self.backend not in BACKENDS:
            raise UsageError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        if ir and self.backend != "openvino":
            raise UsageError(f"{source} is run by openvino, not by {backend}")
        start = self._start_openvino if self.backend == "openvino" else self._start_onnxruntime
        try:
            self.metadata, self.inputs, self._run = start(source, threads)
        except (UsageError, ModelError):
            raise
        except Exception as error:  # the runtimes' exceptions have no common base but this
            raise ModelError(f"{source} is invalid: {error}", code="model_invalid") from error
        if missing := {"sha256", "windows", "traits", "strata"} - set(self.metadata):
            raise ModelError(f"{source} is no graph of masksim: no {', '.join(sorted(missing))}")

    def _start_onnxruntime(
        self, source: Path, threads: int | None
    ) -> tuple[dict[str, str], tuple[str, ...], Callable[[Mapping[str, Any]], Outputs]]:
        import onnxruntime

        # Reduced precision is off: ranks tell apart what it would not.
        provider: tuple[str, dict[str, str]] = {
            "ort-cpu": ("CPUExecutionProvider", {}),
            "ort-cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
            "ort-openvino": (
                "OpenVINOExecutionProvider",
                {"device_type": "CPU", "precision": "FP32"},
            ),
        }[self.backend]
        available = onnxruntime.get_available_providers()
        if provider[0] not in available:
            raise UsageError(
                f"{self.backend} needs an ONNX Runtime with the {provider[0]}; this one has "
                f"{', '.join(available)}"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4  # failures are raised
        options.enable_cpu_mem_arena = False
        providers = [provider] + [("CPUExecutionProvider", {})] * (self.backend != "ort-cpu")
        session = onnxruntime.InferenceSession(str(source), options, providers=providers)
        names = [value.name for value in session.get_outputs()]
        metadata = {
            name.removeprefix(PREFIX): text
            for name, text in session.get_modelmeta().custom_metadata_map.items()
        }

        def run(feed: Mapping[str, Any]) -> Outputs:
            return dict(zip(names, session.run(names, dict(feed)), strict=True))

        return metadata, tuple(value.name for value in session.get_inputs()), run

    def _start_openvino(
        self, source: Path, threads: int | None
    ) -> tuple[dict[str, str], tuple[str, ...], Callable[[Mapping[str, Any]], Outputs]]:
        openvino = import_openvino()
        core = openvino.Core()
        model = core.read_model(source)
        if source.suffix.lower() == ".xml":
            info = model.get_rt_info(["masksim"]) if model.has_rt_info(["masksim"]) else {}
            metadata = {name: _text(value) for name, value in dict(_plain(info)).items()}
        else:
            metadata = read_metadata(source.read_bytes())
        # Where the processor has bfloat16 it would be taken by default.
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        compiled = core.compile_model(model, "CPU", config)
        names = [_name_of(value, metadata.get("outputs", "{}")) for value in compiled.outputs]
        inputs = [_name_of(value, metadata.get("inputs", "{}")) for value in compiled.inputs]

        def run(feed: Mapping[str, Any]) -> Outputs:
            found = compiled(dict(feed))
            return {name: np.array(found[k]) for k, name in enumerate(names)}

        return metadata, tuple(inputs), run

    def __call__(
        self,
        windows: NDArray[np.uint8],
        *,
        luma_windows: NDArray[np.uint8] | None = None,
        side: Sequence[float] | None = None,
        quality: Sequence[float | None] | None = None,
        band: Sequence[float | None] | None = None,
    ) -> Outputs:
        """Run a batch.

        Parameters
        ----------
        windows
            uint8 (images, windows, height, width, 3).
        luma_windows
            The same of a learned residual.
        side
            Shorter side of each image, pixels.
        quality
            JPEG quality of each file, None if it is no JPEG.
        band
            Of each file, see `masksim.traits.compression_band`; None, for one or all, where nothing
            is known of it: then as where there is no trace of a compression.

        Returns
        -------
        dict
            By the names of the outputs.

        Raises
        ------
        UsageError
            `luma_windows`, `side` or `quality` is missing where the graph takes it.
        ModelError
            The graph fails.
        """
        given: dict[str, Any] = {"side": side, "band": np.full(len(windows), np.nan)}
        for name, values in (("quality", quality), ("band", band)):
            if values is not None:
                given[name] = [np.nan if value is None else value for value in values]
        feed: dict[str, Any] = {"windows": windows}
        for name in self.inputs:
            if name == "windows":
                continue
            if name == "luma_windows":
                if luma_windows is None:
                    raise UsageError("this graph also takes the windows of a learned residual")
                feed[name] = luma_windows
                continue
            if given.get(name) is None:
                raise UsageError(f"the rates of this graph depend on the {name} of an image")
            feed[name] = np.asarray(given[name], dtype=np.float32)
        try:
            return self._run(feed)
        except Exception as error:  # as above
            raise ModelError(f"the graph failed: {error}", code="model_invalid") from error


def _name_of(value: Any, described: str) -> str:
    """Name an input or output of OpenVINO as JSON describes it.

    It may have further names, of nodes that were folded into it.
    """
    known = json.loads(described)
    return str(next((name for name in value.get_names() if name in known), value.get_any_name()))


def _plain(value: Any) -> Any:
    return value.value if hasattr(value, "value") else value


def _text(value: Any) -> str:
    return str(_plain(value))


@dataclass(frozen=True)
class Verification:
    """How far a graph is from the detector that it was made of, over some images.

    Attributes
    ----------
    images
        Compared.
    left_out
        Images that the detector does not analyse, by the code of the error.
    tolerance
        Of similarities.
    similarity, probability, own_rate, joint_rate
        Largest absolute difference.
    own_rates_differ, joint_rates_differ, levels_differ
        Images with another rate for some generator, another joint rate, and another level that
        follows from it (strong evidence, evidence, weak evidence, none).
    wrong_ranks
        Images whose rates, or photos behind them, are not those that the detector's calibration
        gives for the graph's own similarities and traits: 0, whatever the rounding.
    detector_seconds, graph_seconds
        Mean time an image, without decoding.
    backend
        What ran the graph.
    """

    images: int
    left_out: Mapping[str, int]
    tolerance: float
    similarity: float
    probability: float
    own_rate: float
    joint_rate: float
    own_rates_differ: int
    joint_rates_differ: int
    levels_differ: int
    wrong_ranks: int
    detector_seconds: float
    graph_seconds: float
    backend: str

    @property
    def same(self) -> bool:
        """Similarities within the tolerance, ranks right, every level equal."""
        return (
            self.images > 0
            and self.similarity <= self.tolerance
            and not self.wrong_ranks
            and not self.levels_differ
        )

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON; None for a difference that is not finite."""
        plain = {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return {**plain, "left_out": dict(self.left_out), "same": self.same}


_COMPARED = ("similarity", "probability", "own_rate", "joint_rate")


class _Comparison:
    """A graph and its detector over some images: largest differences and counts so far."""

    def __init__(self, graph: GraphRunner, detector: Detector) -> None:
        self.graph, self.detector = graph, detector
        self.windows = windows_of(detector)
        self.traits = json.loads(graph.metadata["traits"])
        self.strata = json.loads(graph.metadata["strata"])
        self.largest = dict.fromkeys(_COMPARED, 0.0)
        self.counts: Counter[str] = Counter()
        self.seconds = np.zeros(2)

    def add(self, image: str | os.PathLike[str] | NDArray[np.uint8]) -> None:
        """Compare an image; raises what the detector raises."""
        detector = self.detector
        loaded = load_image(image, part=detector.analysed_part)
        pixels, facts = loaded.pixels, loaded.facts
        quality, band = facts.jpeg_quality, compression_band(facts.format, facts.jpeg_quality)
        start = time.perf_counter()
        similarity, traits = detector.measure_pixels(pixels, quality, facts.format)
        rates = detector.rates(similarity, traits)
        windows = cut_windows(pixels, self.windows)
        luma = cut_windows(pixels, self.windows["luma"])[None] if "luma" in self.windows else None
        middle = time.perf_counter()
        out = self.graph(
            windows[None], luma_windows=luma, side=[traits[_SIDE]], quality=[quality], band=[band]
        )
        self.seconds += [middle - start, time.perf_counter() - middle]
        self.counts["images"] += 1
        self._differ("similarity", out["similarity"][0], similarity)
        expected = _probabilities(detector, similarity, traits)
        self._differ("probability", out["probability"][0], expected)
        if rates is not None:
            self._differ("own_rate", out["false_positive_rate"][0], rates.own)
            joint = float(out["joint_rate"][0])
            self._differ("joint_rate", joint, rates.joint)
            again = self._ranked_again(out, traits)
            levels = [verdict.level_of(found.joint, found.interval) for found in (again, rates)]
            self.counts["level"] += levels[0] != levels[1]
            self.counts["ranks"] += not self._is_ranked_so(out, again)

    def _differ(self, name: str, mine: Any, other: Any) -> None:
        apart = float(np.abs(np.asarray(mine, np.float64) - np.asarray(other, np.float64)).max())
        # Not a number compares as nothing; it is as far as can be.
        self.largest[name] = max(self.largest[name], apart if np.isfinite(apart) else np.inf)
        self.counts[name] += not apart <= _RATES

    def _ranked_again(self, out: Outputs, traits: NDArray[np.float64]) -> Rates:
        """Rank the graph's own numbers by the detector's calibration."""
        seen = traits.copy()
        for name, value in zip(self.traits, out["traits"][0].astype(np.float64), strict=True):
            seen[TRAITS.index(name)] = value
        again = self.detector.rates(out["similarity"][0].astype(np.float64), seen)
        assert again is not None  # the detector has a calibration
        return again

    def _is_ranked_so(self, out: Outputs, again: Rates) -> bool:
        row = self.strata[int(out["stratum"][0])]
        return (
            np.allclose(again.own, out["false_positive_rate"][0], rtol=0, atol=_RATES)
            and abs(again.joint - float(out["joint_rate"][0])) <= _RATES
            and (again.population or row["population"]) == row["population"]
            and again.stratum == row["photos_are"]
        )


def verify(
    graph: GraphRunner,
    detector: Detector,
    images: Iterable[str | os.PathLike[str] | NDArray[np.uint8]],
    *,
    tolerance: float = TOLERANCE,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Compare a graph with the detector that it was made of, on real images.

    Similarities may differ by rounding, and so an image may change places with a calibration photo
    of nearly the same score; the levels of the verdicts must not differ.

    Parameters
    ----------
    graph
        To be checked.
    detector
        With the same `calibrations` as at the export.
    images
        Paths, or pixels, uint8 (H, W, 3). Those that the detector refuses are counted apart.
    tolerance
        Of similarities, absolute.
    progress
        Called with a stage, and how many of how many are done.

    Returns
    -------
    Verification

    Raises
    ------
    ModelError
        Code ``model_hash`` if the graph was made of another detector.
    UsageError
        Its rates are of other photos, or there is no image that both can analyse.
    """
    _check_belongs(graph, detector)
    found, left_out = _Comparison(graph, detector), Counter[str]()
    listed = list(images)
    for k, image in enumerate(listed):
        if progress is not None:
            progress("verify", k, len(listed))
        try:
            found.add(image)
        except ImageError as error:
            left_out[error.code] += 1
    if progress is not None:
        progress("verify", len(listed), len(listed))
    done = found.counts["images"]
    if not done:
        raise UsageError(f"no image to compare; left out: {counted(left_out)}")
    return Verification(
        images=done,
        left_out=dict(left_out),
        tolerance=tolerance,
        **found.largest,
        own_rates_differ=found.counts["own_rate"],
        joint_rates_differ=found.counts["joint_rate"],
        levels_differ=found.counts["level"],
        wrong_ranks=found.counts["ranks"],
        detector_seconds=float(found.seconds[0] / done),
        graph_seconds=float(found.seconds[1] / done),
        backend=graph.backend,
    )


def _check_belongs(graph: GraphRunner, detector: Detector) -> None:
    """Refuse a graph of another detector, or with the rates of other photos."""
    if graph.metadata["sha256"] != detector.sha256:
        raise ModelError(
            f"the graph was made of the detector {graph.metadata['sha256']}, this is "
            f"{detector.sha256}",
            code="model_hash",
        )
    populations = {row["population"] for row in json.loads(graph.metadata["strata"])}
    if populations != set(detector.calibrations):
        raise UsageError(
            f"the graph's rates are of the photos {', '.join(sorted(populations))}, the detector's "
            f"of {', '.join(sorted(detector.calibrations))}"
        )


def _probabilities(
    detector: Detector, similarity: NDArray[np.float64], traits: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Probabilities (G,) of an image's similarities, by the heads' own parameters."""
    a, b = (values[bands_of(traits, len(values))] for values in detector.file.logistic)
    found: NDArray[np.float64] = probability(similarity, a, b)
    return found
