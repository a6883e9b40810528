"""From a spectrum to its similarity with a generator's reference, and to a probability.

Pure functions over the array API, so that NumPy (detection) and torch (training, with gradients)
run the same lines. The similarity is the sum of the similarity map that is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from masksim.arrays import Array, array_namespace, device_of
from masksim.errors import ModelError

CHANNELS = 3
BATCH_NORM_EPSILON = 1e-5
COSINE_EPSILON = 1e-8
LEAST_SQUARE = 1e-12  # of deviations, before the logarithm

# exp(80) is still finite in single precision: no overflow, and full relative accuracy below 0.
_SIGMOID_LIMIT = 80.0


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))`` without overflow, accurate for negative values too."""
    return 1 / (1 + array_namespace(x).exp(-_at_least(x, -_SIGMOID_LIMIT)))


def _at_least(x: Array, lowest: float) -> Array:
    # Not `clip`: in older array_api_compat it cuts torch's gradient.
    xp = array_namespace(x)
    return xp.where(x > lowest, x, xp.full_like(x, lowest))


def mix_channels(spectrum: Array, mixing: Array) -> Array:
    """Mix the channels: a 1x1 convolution without bias.

    Parameters
    ----------
    spectrum : array, shape (..., C, H, W)
    mixing : array, shape (D, C)

    Returns
    -------
    array, shape (..., D, H, W)
    """
    xp = array_namespace(spectrum, mixing)
    *batch, channels, height, width = spectrum.shape
    flat = xp.reshape(spectrum, (*batch, channels, height * width))
    return xp.reshape(xp.matmul(mixing, flat), (*batch, mixing.shape[0], height, width))


def blur(image: Array, kernel: Array) -> Array:
    """Filter each channel with its own kernel, with zeros outside (cross-correlation).

    Parameters
    ----------
    image : array, shape (..., C, H, W)
    kernel : array, shape (C, k, k)
        k odd.

    Returns
    -------
    array, shape (..., C, H, W)
    """
    xp = array_namespace(image, kernel)
    size = kernel.shape[-1]
    reach = size // 2
    *batch, channels, height, width = image.shape
    like = {"dtype": image.dtype, "device": device_of(image)}
    rows = xp.zeros((*batch, channels, reach, width), **like)
    columns = xp.zeros((*batch, channels, height + 2 * reach, reach), **like)
    padded = xp.concat([columns, xp.concat([rows, image, rows], axis=-2), columns], axis=-1)
    out = xp.zeros_like(image)
    for i in range(size):
        for j in range(size):
            weight = kernel[:, i, j][:, None, None]
            out = out + weight * padded[..., i : i + height, j : j + width]
    return out


def mask_of(logits: Array, kernel: Array) -> Array:
    """Make the mask, in (0, 1), of its free parameter.

    Parameters
    ----------
    logits : array, shape (..., C, H, W)
    kernel : array, shape (C, k, k)
        The blur (a box, as trained by the original).

    Returns
    -------
    array, shape (..., C, H, W)
        ``sigmoid(blur(logits, kernel))``.
    """
    return sigmoid(blur(logits, kernel))


def unit_vectors(x: Array, epsilon: float = COSINE_EPSILON) -> Array:
    """Each channel divided by its Euclidean norm over the frequencies.

    Parameters
    ----------
    x : array, shape (..., C, H, W)
    epsilon : float
        Norms are taken as at least this, each by itself, as torch's ``cosine_similarity`` does.

    Returns
    -------
    array, shape (..., C, H, W)
    """
    xp = array_namespace(x)
    norm = xp.sqrt(xp.sum(x * x, axis=(-2, -1), keepdims=True))
    return x / _at_least(norm, epsilon)


def unit_reference(reference: Array) -> Array:
    """Subtract the mean over the frequencies, per channel, and scale to unit vectors.

    Parameters
    ----------
    reference : array, shape (..., C, H, W)

    Returns
    -------
    array, shape (..., C, H, W)
    """
    xp = array_namespace(reference)
    return unit_vectors(reference - xp.mean(reference, axis=(-2, -1), keepdims=True))


def similarity_map(features: Array, reference: Array) -> Array:
    """Elementwise product of the unit vectors of both: its sum over frequencies is the cosine.

    Parameters
    ----------
    features : array, shape (..., C, H, W)
        Masked and normalised spectrum.
    reference : array, shape (C, H, W)
        From `unit_reference`.

    Returns
    -------
    array, shape (..., C, H, W)
    """
    return unit_vectors(features) * reference


def channel_cosines(similarity_map: Array) -> Array:
    """Sum of the map over the frequencies, in [-1, 1]: shape (..., C, H, W) -> (..., C)."""
    return array_namespace(similarity_map).sum(similarity_map, axis=(-2, -1))


def similarity_of(similarity_map: Array) -> Array:
    """Sum a map up to its similarity, in [-1, 1]: shape (..., C, H, W) -> (...)."""
    return array_namespace(similarity_map).mean(channel_cosines(similarity_map), axis=-1)


def logit(similarity: Array, a: Array, b: Array) -> Array:
    """``exp(a) * similarity + b``: the log-odds of `probability`."""
    return array_namespace(similarity, a, b).exp(a) * similarity + b


def probability(similarity: Array, a: Array, b: Array) -> Array:
    """``sigmoid(exp(a) * similarity + b)``, in (0, 1): the original's calibrated output."""
    return sigmoid(logit(similarity, a, b))


@dataclass(frozen=True)
class Similarity:
    """What a head says of a batch of spectra.

    Attributes
    ----------
    score : array, shape (...)
        In [-1, 1]: the mean over channels of the sum of `map` over frequencies.
    map : array, shape (..., 3, H, W)
        Of the mask that gives the highest score.
    mask : array of integers, shape (...)
        Which mask that is, from 0.
    """

    score: Array
    map: Array
    mask: Array


@dataclass(frozen=True)
class OriginalHead:
    """Masks and references of one generator, as in the original, ready to be applied.

    Attributes
    ----------
    mixing : array, shape (3, 3)
        1x1 convolution over the channels of the spectrum.
    masks : array, shape (M, 3, H, W)
        In (0, 1): the sigmoid already taken.
    scale, shift : array, shape (3, 1, 1)
        The batch norm with its running statistics: ``x * scale + shift``.
    references : array, shape (M, 3, H, W)
        Centred unit vectors.
    a, b : array, shape ()
        Of `probability`.
    """

    mixing: Array
    masks: Array
    scale: Array
    shift: Array
    references: Array
    a: Array
    b: Array

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> OriginalHead:
        """Precompute what does not depend on the image.

        Parameters
        ----------
        tensors : mapping of name to array
            The names of `tensor_shapes`. Half precision is computed with in single precision.

        Raises
        ------
        ModelError
            Code ``model_invalid``, listing what is missing, unknown or misshapen.
        """
        check_tensors(tensors)
        xp = array_namespace(*tensors.values())
        tensors = {
            name: xp.astype(values, xp.float32) if values.dtype == xp.float16 else values
            for name, values in tensors.items()
        }
        gain = tensors["norm_vector.weight"]
        scale = gain / xp.sqrt(tensors["norm_vector.running_var"] + BATCH_NORM_EPSILON)
        shift = tensors["norm_vector.bias"] - tensors["norm_vector.running_mean"] * scale
        kernel = tensors["mask_conv.weight"][:, 0, :, :]
        count = _mask_count(tensors)
        return cls(
            mixing=tensors["in_conv_fft.0.weight"][:, :, 0, 0],
            masks=xp.stack(
                [mask_of(tensors[f"mask_pre_activ_list.{i}"], kernel) for i in range(count)]
            ),
            scale=scale[:, None, None],
            shift=shift[:, None, None],
            references=xp.stack(
                [unit_reference(tensors[f"ref_pattern_list.{i}"]) for i in range(count)]
            ),
            a=tensors["clf_a"],
            b=tensors["clf_b"],
        )

    def similarity(self, spectrum: Array) -> Similarity:
        """Compare spectra with the generator's references.

        Parameters
        ----------
        spectrum : array, shape (..., 3, H, W)
            From `masksim.spectrum.log_spectrum`.

        Returns
        -------
        Similarity
            Of the best of the masks for each spectrum, the first of equals.
        """
        xp = array_namespace(spectrum, self.mixing)
        mixed = mix_channels(spectrum, self.mixing)
        best: Similarity | None = None
        for i in range(self.masks.shape[0]):
            features = mixed * self.masks[i, ...] * self.scale + self.shift
            shown = similarity_map(features, self.references[i, ...])
            score = similarity_of(shown)
            if best is None:
                best = Similarity(score, shown, xp.zeros_like(score, dtype=xp.int64))
                continue
            better = score > best.score
            best = Similarity(
                xp.where(better, score, best.score),
                xp.where(better[..., None, None, None], shown, best.map),
                xp.where(better, xp.full_like(best.mask, i), best.mask),
            )
        if best is None:
            raise ModelError("a head needs at least one mask", code="model_invalid")
        return best

    def probability(self, score: Array) -> Array:
        """Probability in (0, 1) that the original gives for a similarity."""
        return probability(score, self.a, self.b)


def _mask_count(tensors: Mapping[str, Array]) -> int:
    return sum(name.startswith("mask_pre_activ_list.") for name in tensors)


def tensor_shapes(
    masks: int, height: int, width: int, kernel_size: int = 3
) -> dict[str, tuple[int, ...]]:
    """Names, as in the original's checkpoints, and shapes of the arrays of an `OriginalHead`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(masks):
        shapes[f"ref_pattern_list.{i}"] = (CHANNELS, height, width)
        shapes[f"mask_pre_activ_list.{i}"] = (CHANNELS, height, width)
    shapes["mask_conv.weight"] = (CHANNELS, 1, kernel_size, kernel_size)
    shapes["in_conv_fft.0.weight"] = (CHANNELS, CHANNELS, 1, 1)
    for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"norm_vector.{part}"] = (CHANNELS,)
    shapes["clf_a"] = ()
    shapes["clf_b"] = ()
    return shapes


def check_tensors(
    tensors: Mapping[str, Array], *, masks: int | None = None, size: int | None = None
) -> None:
    """Compare names and shapes with `tensor_shapes`.

    Parameters
    ----------
    tensors : mapping of name to array
    masks : int, optional
        Number of masks; by default as many as are there (at least one).
    size : int, optional
        Side of the spectra; by default that of the first reference.

    Raises
    ------
    ModelError
        Code ``model_invalid``, listing everything missing, unknown or misshapen.
    """
    count = max(1, _mask_count(tensors)) if masks is None else masks
    height = width = size or 0
    first = tensors.get("ref_pattern_list.0")
    if size is None and first is not None and len(first.shape) == 3:
        height, width = first.shape[1], first.shape[2]
    kernel = tensors.get("mask_conv.weight")
    kernel_size = 3
    if kernel is not None and len(kernel.shape) == 4 and kernel.shape[-1] % 2 == 1:
        kernel_size = kernel.shape[-1]
    expected = tensor_shapes(count, height, width, kernel_size)
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    for name, array in tensors.items():
        if name not in expected:
            problems.append(f"{name} is unknown")
        elif tuple(array.shape) != expected[name]:
            problems.append(f"{name} has shape {tuple(array.shape)}, expected {expected[name]}")
    if problems:
        raise ModelError("invalid tensors of a head: " + "; ".join(problems), code="model_invalid")


# --- the shared recipe ---------------------------------------------------------------------------


def standardise(features: Array, mean: Array, deviation: Array, limit: float) -> Array:
    """Subtract each channel's level, then the real photos' mean, and divide by their deviation.

    Parameters
    ----------
    features : array, shape (..., C, R, S)
    mean, deviation : array, shape (C, R, S)
        Of level-free features of real photos.
    limit : float
        Values are clipped to +-limit deviations.

    Returns
    -------
    array, shape (..., C, R, S)
    """
    xp = array_namespace(features, mean)
    level = xp.mean(features, axis=(-2, -1), keepdims=True)
    return xp.clip((features - level - mean) / deviation, -limit, limit)


def whiten(z: Array, basis: Array, shrink: Array) -> Array:
    """Shrink what real photos and generated images alike vary by.

    With the eigenvectors of the covariance within the classes as the basis, this is the linear map
    after which they all vary by as much: the similarity then counts what is rare, not what is
    large. Beyond the basis nothing changes.

    Parameters
    ----------
    z : array, shape (..., C, R, S)
        From `standardise`.
    basis : array, shape (K, C, R, S)
        Orthonormal.
    shrink : array, shape (K,)
        In [0, 1]: the share of each component that is taken away.

    Returns
    -------
    array, shape (..., C, R, S)
    """
    xp = array_namespace(z, basis)
    *batch, c, r, s = z.shape
    flat = xp.reshape(z, (*batch, c * r * s))
    vectors = xp.reshape(basis, (basis.shape[0], c * r * s))
    parts = xp.matmul(flat, xp.matrix_transpose(vectors)) * shrink
    return xp.reshape(flat - xp.matmul(parts, vectors), z.shape)


@dataclass(frozen=True)
class SharedHeads:
    """Masks and references of all generators on one residual.

    The similarity is the cosine between the masked, standardised spectrum and the reference, over
    all channels and cells at once: the sum of the similarity map.

    Attributes
    ----------
    mean, deviation : array, shape (C, R, S)
        See `standardise`.
    masks : array, shape (G, C, R, S)
        In [0, 1].
    references : array, shape (G, C, R, S)
        Unit vectors over (C, R, S).
    a, b : array, shape (G,)
        Of `probability`.
    limit : float
        See `standardise`.
    basis, shrink : array, shape (K, C, R, S) and (K,)
        See `whiten`; None where the spectrum is compared as it is.
    share : array, shape (G,)
        In [0, 1]: how much the similarity counts in that of the detector, which is the sum over the
        branches that a generator has heads in. 1 where it has one alone.
    """

    mean: Array
    deviation: Array
    masks: Array
    references: Array
    a: Array
    b: Array
    limit: float
    basis: Array = None
    shrink: Array = None
    share: Array = None

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], limit: float) -> SharedHeads:
        """Read the arrays of a detector file with one set of heads, in single precision.

        Raises
        ------
        ModelError
            Code ``model_invalid``, if one is missing, unknown or misshapen.
        """
        one_band = {
            name: array if name in _FOR_ALL else array[None] for name, array in tensors.items()
        }
        return heads_by_band(one_band, limit)[0]

    def standardise(self, features: Array) -> Array:
        """Give features in deviations of real photos: (..., C, R, S), see `standardise`."""
        return standardise(features, self.mean, self.deviation, self.limit)

    def compared(self, features: Array) -> Array:
        """Give what masks are laid over: standardised and, with a basis, whitened."""
        z = self.standardise(features)
        return z if self.basis is None else whiten(z, self.basis, self.shrink)

    def maps(self, features: Array) -> Array:
        """Contribution of each cell to each generator's similarity.

        Parameters
        ----------
        features : array, shape (..., C, R, S)
            From `masksim.features.pattern_features`.

        Returns
        -------
        array, shape (..., G, C, R, S)
            Its sum over the last three axes is the similarity, in [-1, 1].
        """
        xp = array_namespace(features)
        masked = self.compared(features)[..., None, :, :, :] * self.masks
        norm = xp.sqrt(xp.sum(masked * masked, axis=(-3, -2, -1), keepdims=True))
        return masked / xp.clip(norm, COSINE_EPSILON, None) * self.references

    def similarities(self, features: Array) -> Array:
        """Sum of the maps: shape (..., C, R, S) -> (..., G)."""
        return array_namespace(features).sum(self.maps(features), axis=(-3, -2, -1))

    def mean_square(self, features: Array) -> Array:
        """Mean squared deviation from real photos: shape (..., C, R, S) -> (...)."""
        z = self.standardise(features)
        return array_namespace(z).mean(z * z, axis=(-3, -2, -1))

    def distance(self, features: Array) -> float:
        """How far an image (C, R, S) is from real photos: ln of the mean squared deviation."""
        return math.log(max(float(self.mean_square(features)), LEAST_SQUARE))

    def probability(self, similarity: Array) -> Array:
        """``sigmoid(exp(a) * similarity + b)`` of each generator, (..., G)."""
        return probability(similarity, self.a, self.b)


_BY_BAND = ("mean", "deviation", "masks", "references", "a", "b")
_FOR_ALL = ("basis", "shrink")
_SHARE = "share"


def read_heads(kind: str, tensors: Mapping[str, Array], limit: float) -> tuple[SharedHeads, ...]:
    """Read the heads of a shared branch: one set, or with ``"bands"`` one for each band.

    Raises
    ------
    ModelError
        Code ``model_invalid``, if an array is missing, unknown or misshapen.
    """
    if kind == "bands":
        return heads_by_band(tensors, limit)
    return (SharedHeads.from_tensors(tensors, limit),)


def heads_by_band(tensors: Mapping[str, Array], limit: float) -> tuple[SharedHeads, ...]:
    """Read heads of which there is a set for each band of compression, in single precision.

    Parameters
    ----------
    tensors
        Those of `SharedHeads`, each with the bands (B,) as its first axis, but for ``basis`` and
        ``shrink``, which all bands share and which need not be there; nor need ``share``. Bands of
        length one are the same for all.
    limit
        See `standardise`.

    Returns
    -------
    tuple of SharedHeads
        One a band.

    Raises
    ------
    ModelError
        Code ``model_invalid``, if an array is missing, unknown or misshapen.
    """
    tensors = {**tensors}
    if _SHARE not in tensors and "b" in tensors:
        tensors[_SHARE] = tensors["b"] * 0 + 1
    by_band = (*_BY_BAND, _SHARE)
    names = by_band + (_FOR_ALL if "basis" in tensors else ())
    if set(tensors) != set(names):
        raise ModelError(
            f"shared heads have the arrays {sorted(tensors)}, expected {sorted(names)}",
            code="model_invalid",
        )
    sizes = {name: tuple(tensors[name].shape) for name in names}
    bands = max((sizes[name] or (0,))[0] for name in by_band)
    shape = sizes["masks"][1:]
    expected = {
        "mean": shape[1:], "deviation": shape[1:], "masks": shape, "references": shape,
        "a": shape[:1], "b": shape[:1], _SHARE: shape[:1],
    }  # fmt: skip
    wrong = [
        name
        for name, rest in expected.items()
        if sizes[name][:1] not in ((1,), (bands,)) or sizes[name][1:] != rest
    ]
    if "basis" in tensors and sizes["basis"] != (*sizes["shrink"], *shape[1:]):
        wrong.append("basis")
    if wrong or len(shape) != 4 or bands < 1:
        raise ModelError(f"shared heads have misshapen arrays: {wrong}", code="model_invalid")
    xp = array_namespace(tensors["masks"])
    single = {name: xp.astype(tensors[name], xp.float32) for name in names}
    norm = xp.sqrt(xp.sum(single["references"] ** 2, axis=(-3, -2, -1), keepdims=True))
    single["references"] = single["references"] / xp.clip(norm, COSINE_EPSILON, None)
    common = {name: single.get(name) for name in _FOR_ALL}
    return tuple(
        SharedHeads(
            **{name: single[name][min(k, single[name].shape[0] - 1), ...] for name in by_band},
            **common,
            limit=limit,
        )
        for k in range(bands)
    )
