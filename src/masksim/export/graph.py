"""What an exported graph computes: all that follows the choice of windows.

Colour, residual, spectra, heads, traits: the functions that detection runs are called with arrays
that write a graph (`masksim.export.trace`). Written for the graph alone is how the segments of all
windows of a batch are averaged, how each image gets the heads of its band, and
(`masksim.export.ranks`) how it is ranked among photos, since detection takes one image at a time.
`masksim.export.onnx` makes a file of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from masksim import preprocess, spectrum
from masksim.bank import BANK
from masksim.errors import ModelError
from masksim.features import FeatureConfig, LumaConfig, part_of_each
from masksim.model import LEAST_SQUARE, OriginalHead, SharedHeads, read_heads
from masksim.residual import LEARNED_FIXED
from masksim.traits import index_of_band, measure_window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from masksim.checkpoint import Branch
    from masksim.detector import Detector
    from masksim.export.trace import Array, Writer

MEASURED = ("energy", "sharpness", "chroma", "brightness", "flat", "distance")
"""Traits that windows show; what only the whole image or its file shows are inputs."""

GIVEN = {
    "side": "shorter side of the whole image, pixels",
    "quality": "JPEG quality of the file, 1 to 100, as masksim estimates it; NaN if it is no JPEG",
    "band": "what the file shows of its last compression, 0 to 4, see masksim.traits."
    "compression_band; NaN, treated as 0, if unknown",
}
"""Traits that are inputs of the graph, where anything depends on them, and what they are."""


def windows_of(detector: Detector) -> dict[str, Any]:
    """Say how the windows of an image are chosen: settings of `masksim.preprocess`.

    Returns
    -------
    dict
        ``recipe``, and for ``"shared"`` (heads by band, too) the arguments of `shared_windows`, for
        ``"original"`` those of `centre_window`. With heads on a learned residual of luma also
        ``luma``: the same of its windows.

    Raises
    ------
    ModelError
        Code ``model_invalid``: the branches of the detector look at different windows.
    """
    kinds = {branch.head for branch in detector.file.branches}
    first, *more = detector.file.branches
    residuals = [branch.residual.kind for branch in detector.file.branches]
    if kinds <= {"shared", "bands"} and residuals in (["bank"], ["bank", "learned"]):
        return _placed(first) | ({"luma": _placed(more[0])} if more else {})
    found = {
        (int(branch.preprocess["window"]), bool(branch.preprocess["aligned"]))
        for branch in detector.file.branches
        if branch.head == "original"
    }
    if kinds != {"original"} or len(found) != 1:
        raise ModelError(
            "one graph holds heads on the bank, with or without those on a learned residual, or "
            "original ones with one window; this detector "
            f"has {len(detector.file.branches)} branches of {sorted(kinds)} heads"
        )
    ((size, aligned),) = found
    return {"recipe": "original", "size": size, "aligned": aligned}


def _placed(branch: Branch) -> dict[str, Any]:
    """Arguments of `masksim.preprocess.shared_windows` for a branch."""
    names = {"size": "window", "count": "windows"} | {
        name: name for name in ("smallest", "region", "spacing")
    }
    values = branch.preprocess
    return {"recipe": "shared"} | {name: int(values[key]) for name, key in names.items()}


def cut_windows(pixels: NDArray[np.uint8], chosen: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Cut the windows that a graph takes out of an image.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3), sRGB.
    chosen
        From `windows_of`, or its ``luma``.

    Returns
    -------
    ndarray of uint8, shape (windows, height, width, 3)

    Raises
    ------
    ImageError
        Code ``too_small``.
    """
    how = {key: value for key, value in chosen.items() if key != "luma"}
    if how.pop("recipe") == "shared":
        corners, height, width = preprocess.shared_windows(*pixels.shape[:2], **how)
    else:
        height = width = how["size"]
        corners = [preprocess.centre_window(*pixels.shape[:2], **how)]
    return np.stack([pixels[y : y + height, x : x + width] for y, x in corners])


@dataclass(eq=False)
class Traits:
    """Traits of the images of a batch, (images,) each; an input of the graph once it is asked for.

    Attributes
    ----------
    xp
        Writes the graph.
    known
        By name.
    """

    xp: Writer
    known: dict[str, Array] = field(default_factory=dict)

    def get(self, name: str) -> Array | None:
        """Return a trait; None where the heads cannot know it."""
        if name in GIVEN and name not in self.known:
            given = self.xp.input(name, np.float32, [None])
            if name == "band":  # not known: as where there is no trace of a compression
                given = self.xp.where(given > 0, given, 0)
            self.known[name] = given
        return self.known.get(name)

    def band(self, count: int) -> Array:
        """Return the band of compression as an index below `count`: int64 (images,)."""
        found: Array = index_of_band(self.get("band"), count)
        return found


def measured(
    detector: Detector, windows: Array, maps: bool, luma_windows: Array | None = None
) -> tuple[dict[str, Array], Traits]:
    """Compute all but the rates.

    Parameters
    ----------
    detector
        Its branches are those that `windows_of` allows.
    windows
        uint8 (images, windows, H, W, 3).
    maps
        Whether the maps are wanted.
    luma_windows
        Those of a learned residual, where the detector has one.

    Returns
    -------
    found
        Outputs of the graph by name, see docs/export.md: ``similarity``, ``probability``,
        ``traits``; ``features`` of the shared recipe, and ``maps``.
    traits

    Raises
    ------
    ModelError
        Code ``model_invalid``: the maps have different sizes.
    """
    xp, branches = windows.xp, detector.file.branches
    height, width = windows.shape[2:4]
    pixels = xp.astype(xp.reshape(windows, (-1, height, width, 3)), np.float32)
    traits = Traits(xp)
    if branches[0].head == "original":
        levels = xp.moveaxis(pixels, -1, 1)
        parts = [_original(branch, levels, maps) for branch in branches]
        sizes = {branch.tensors["ref_pattern_list.0"].shape for branch in branches}
        if maps and len(sizes) > 1:
            raise ModelError(f"the maps of this detector have different sizes: {sorted(sizes)}")
        found = {name: xp.stack([part[name] for part in parts], axis=1) for name in parts[0]}
    else:
        found = _shared(detector, windows, xp.moveaxis(pixels, -1, 0), luma_windows, traits, maps)
    each = (_by_image(values, windows) for values in measure_window(pixels))
    energy, half, chroma, brightness, flat = (xp.mean(values, axis=1) for values in each)
    shown = (energy, energy - half, chroma, brightness, flat, found.pop("distance", None))
    traits.known |= {
        name: xp.astype(value, np.float32)
        for name, value in zip(MEASURED, shown, strict=True)
        if value is not None
    }
    found["traits"] = xp.stack(
        [traits.known[name] for name in MEASURED if name in traits.known], axis=1
    )
    return found, traits


def _by_image(values: Array, windows: Array) -> Array:
    """Part the first axis, (images * windows), in two."""
    return values.xp.reshape(values, (*windows.shape[:2], *values.shape[1:]))


# --- the shared recipe ---------------------------------------------------------------------------


def _shared(
    detector: Detector,
    windows: Array,
    levels: Array,
    luma_windows: Array | None,
    traits: Traits,
    maps: bool,
) -> dict[str, Array]:
    """All heads on the residual bank, and those on a learned residual where there are any."""
    xp = levels.xp
    branch, *more = detector.file.branches
    features = _features(branch, FeatureConfig.from_dict(branch.settings), windows, levels)
    heads = _read(branch, traits)
    distance = xp.log(xp.clip(heads.mean_square(features), LEAST_SQUARE, None))
    similarity = heads.similarities(features)
    shown = [heads.maps(features)] if maps else []
    if luma_windows is not None:
        similarity = similarity * heads.share
        shown = [values * _last_axes(heads.share, 3) for values in shown]
        learned = _read(more[0], traits)
        spectra = _luma_features(more[0], luma_windows)
        added = learned.similarities(spectra) * learned.share
        places = [
            more[0].generators.index(name) if name in more[0].generators else -1
            for name in detector.generators
        ]
        similarity = similarity + _placed_columns(added, places)
        if maps:
            rows = features.sizes[-2] or 0
            each = learned.maps(spectra) * _last_axes(learned.share, 3)
            fine = _finer(each, rows // (spectra.sizes[-2] or 1))
            shown.append(_placed_columns(fine, places))
    found: dict[str, Array] = {
        "features": features,
        "similarity": similarity,
        "probability": heads.probability(similarity),
        "distance": distance,
    }
    return found | ({"maps": xp.concat(shown, axis=2)} if maps else {})


def _read(branch: Branch, traits: Traits) -> SharedHeads:
    """Give the heads of each image's band."""
    limit = float(branch.head_config["limit"])
    return _heads_of_each(read_heads(branch.head, branch.tensors, limit), traits)


def _last_axes(values: Array, count: int) -> Array:
    """Add axes of length one at the end."""
    return values[(..., *[None] * count)]


def _placed_columns(values: Array, places: Sequence[int]) -> Array:
    """Columns (images, G, ...) of the detector's generators; 0 for those without a head here."""
    xp = values.xp
    found: Array = xp.take(values, np.array([max(0, place) for place in places]), axis=1)
    if min(places) >= 0:
        return found
    there = np.array([place >= 0 for place in places], np.float32)
    return found * there.reshape(-1, *[1] * (len(values.sizes) - 2))


def _finer(maps: Array, times: int) -> Array:
    """Part each cell (..., R, S) in `times` x `times` of one value, so that sums stay."""
    xp = maps.xp
    rows, columns = (int(n or 0) * times for n in maps.sizes[-2:])
    each = np.full((1, times, 1, times), 1 / times**2, np.float32)
    parted = maps[..., :, None, :, None] * each
    return xp.reshape(parted, (*maps.shape[:-2], rows, columns))


def _luma_features(branch: Branch, windows: Array) -> Array:
    """Compute `masksim.features.luma_features` of windows: (images, C, R, R // 2)."""
    from masksim.export.trace import Segments

    xp = windows.xp
    config = LumaConfig.from_dict(branch.settings)
    height, width = windows.shape[2:4]
    pixels = xp.astype(xp.reshape(windows, (-1, height, width, 3)), np.float32)
    luma = preprocess.luma_chroma_of(xp.moveaxis(pixels, -1, 0))[0]
    channels = branch.residual.outputs + len(LEARNED_FIXED)
    residual = xp.inline(branch.onnx, luma, channels)
    window = spectrum.hann_window(config.segment)
    logs = spectrum.log_power(Segments(residual, config.segment, config.hop) * window, config.floor)
    mean = logs.map(_mean, windows).joined(config.segment)
    found: Array = spectrum.cells_of(mean, config.cell)
    return found


def _heads_of_each(heads: Sequence[SharedHeads], traits: Traits) -> SharedHeads:
    """Give each image the arrays of its band, (images, ...), or all the same where there is one."""
    xp = traits.xp

    def chosen(name: str) -> Array | None:
        values = [getattr(one, name) for one in heads]
        if values[0] is None:
            return None
        if all(np.array_equal(values[0], value) for value in values[1:]):
            return xp.asarray(values[0])
        found: Array = xp.take(xp.asarray(np.stack(values)), traits.band(len(heads)), axis=0)
        return found

    names = {entry.name for entry in fields(SharedHeads)} - {"limit"}
    arrays: dict[str, Any] = {name: chosen(name) for name in sorted(names)}
    return replace(heads[0], **arrays)


def _features(branch: Branch, config: FeatureConfig, windows: Array, levels: Array) -> Array:
    """Compute `masksim.features.shared_features` of levels (3, B, H, W): (images, C, R, R // 2)."""
    from masksim.export.trace import Segments

    xp = levels.xp
    window = spectrum.hann_window(config.segment)
    means = []
    planes = preprocess.luma_chroma_of(levels)
    for k, (group, hop) in enumerate(zip(planes, config.hops, strict=True)):
        residual = xp.inline(branch.onnx, group, len(BANK) * (k + 1))
        if config.kinds != BANK:
            of = [BANK.index(kind) * (k + 1) + p for kind in config.kinds for p in range(k + 1)]
            residual = xp.take(residual, np.array(of), axis=1)
        logs = spectrum.log_power(Segments(residual, config.segment, hop) * window, config.floor)
        if k == 0 and config.parts > 1:
            shares = _shares_of_parts(residual, windows, config)
            mean = logs.map(_mean_in_parts, shares)
        else:
            mean = logs.map(_mean, windows)
        means.append(mean.joined(config.segment))
    if config.coherence:
        half = preprocess.sums_of_four(levels)
        cross = xp.with_border(xp.moveaxis(preprocess.cross_difference(half), 0, 1))
        transform = xp.fft.rfftn(Segments(cross, config.segment, config.hops[1]) * window)
        cosines = spectrum.phase_cosines(transform, axis=1)
        means.append(cosines.map(_mean, windows).joined(config.segment))
    found: Array = spectrum.cells_of(xp.concat(means, axis=1), config.cell)
    return found


def _mean(values: Array, windows: Array) -> Array:
    """Mean over segments and windows: (B, C, down, n, across, m) -> (images, C, n, m)."""
    xp = values.xp
    return xp.mean(_by_image(xp.mean(values, axis=(2, 4)), windows), axis=1)


def _shares_of_parts(residual: Array, windows: Array, config: FeatureConfig) -> Array:
    """Share with which each segment counts in each part of its image: (images, parts, n).

    The segments of all windows of an image are ranked together.
    """
    xp, segment, hop = residual.xp, config.segment, config.hops[0]
    cross = residual[:, :1, ...]  # the first kind
    squared = xp.matrix_transpose(cross * cross)
    lines = xp.mean(xp.segments(squared, segment, hop), axis=3)  # (B, 1, across, H)
    energies = xp.mean(xp.segments(xp.matrix_transpose(lines), segment, hop), axis=3)
    parts = part_of_each(xp.reshape(energies, (windows.shape[0], -1)), config.parts)
    chosen = xp.astype(parts[:, None, :] == np.arange(config.parts)[None, :, None], np.float32)
    # At least one: windows smaller than those of any image may have fewer segments than parts.
    return chosen / xp.maximum(xp.sum(chosen, axis=2, keepdims=True), 1)


def _mean_in_parts(values: Array, shares: Array) -> Array:
    """Mean of each part: (B, C, down, n, across, m) -> (images, parts * C, n, m)."""
    xp, parts = values.xp, shares.shape[1]
    _, channels, _, rows, _, columns = values.shape
    each = xp.permute_dims(values, (0, 2, 4, 1, 3, 5))
    each = xp.reshape(each, (shares.shape[0], -1, channels * rows * columns))
    return xp.reshape(shares @ each, (-1, parts * channels, rows, columns))


# --- heads of the original -----------------------------------------------------------------------


def _original(branch: Branch, levels: Array, maps: bool) -> dict[str, Array]:
    """One generator of the original, on its own residual of levels (images, 3, H, W)."""
    xp = levels.xp
    head = OriginalHead.from_tensors(branch.tensors)
    names = [entry.name for entry in fields(OriginalHead)]
    head = replace(head, **{name: xp.asarray(getattr(head, name)) for name in names})
    planes = preprocess.planes_of(levels, branch.preprocess["colour"])
    channels, height, width = head.masks.shape[-3:]
    residual = xp.inline(branch.onnx, planes, channels)
    residual = xp.reshape(residual, (-1, channels, height, width))
    found = head.similarity(spectrum.log_spectrum(residual, float(branch.spectrum["epsilon"])))
    outputs = {"similarity": found.score, "probability": head.probability(found.score)}
    # The similarity is the mean over the channels, and the sum of the maps that are written.
    return outputs | ({"maps": found.map / channels} if maps else {})
