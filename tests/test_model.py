"""`masksim.model` against torch's own layers, in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import make_original_fixture as fixture  # type: ignore[import-not-found]
from masksim import model
from masksim.errors import ModelError
from masksim.model import OriginalHead, SharedHeads
from masksim.spectrum import log_spectrum


def tensors(masks: int = 2, side: int = 20, dtype: str = "float64", kernel: int = 3) -> Any:
    arrays = fixture.state("none", side, masks, kernel=kernel)
    return {name: values.astype(dtype) for name, values in arrays.items()}


def spectra(batch: int = 3, side: int = 20) -> NDArray[np.float64]:
    planes = [fixture.colour(fixture.image(side, side, i), False)[0] for i in range(batch)]
    return np.asarray(log_spectrum(np.stack(planes)))


@pytest.mark.parametrize("masks", [1, 2, 5])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_head_is_the_originals(masks: int, kernel: int) -> None:
    pytest.importorskip("torch")
    planes = np.concatenate(
        [fixture.colour(fixture.image(20, 20, seed), seed % 2 == 0) for seed in range(8)]
    )
    arrays = fixture.state("none", 20, masks, kernel=kernel)
    expected = fixture.original(planes, arrays, "none")
    head = OriginalHead.from_tensors({n: v.astype(np.float64) for n, v in arrays.items()})
    found = head.similarity(log_spectrum(planes))
    np.testing.assert_allclose(found.score, expected["similarity"], rtol=1e-9)
    np.testing.assert_array_equal(found.mask, expected["mask"])
    if masks > 1:
        assert len(set(found.mask.tolist())) > 1  # the maximum is over several winners
    np.testing.assert_allclose(found.map, expected["map"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(model.channel_cosines(found.map), expected["channels"], rtol=1e-9)
    np.testing.assert_allclose(head.probability(found.score), expected["prob"], rtol=1e-9)


def test_the_score_is_the_sum_of_the_map() -> None:
    head = OriginalHead.from_tensors(tensors(dtype="float32"))
    found = head.similarity(spectra().astype(np.float32))
    assert found.map.dtype == found.score.dtype == np.float32
    np.testing.assert_allclose(found.map.sum(axis=(1, 2, 3)) / 3, found.score, rtol=1e-5)
    np.testing.assert_array_equal(model.similarity_of(found.map), found.score)


def test_one_spectrum_and_batches_of_any_shape_agree() -> None:
    head = OriginalHead.from_tensors(tensors())
    batch = spectra(6)
    together = head.similarity(batch)
    grid = head.similarity(batch.reshape(2, 3, 3, 20, 20))
    np.testing.assert_allclose(grid.score.reshape(6), together.score, rtol=1e-12)
    np.testing.assert_allclose(grid.map.reshape(together.map.shape), together.map, rtol=1e-12)
    one = head.similarity(batch[4])
    np.testing.assert_allclose(one.score, together.score[4], rtol=1e-12)
    np.testing.assert_allclose(one.map, together.map[4], rtol=1e-12)
    assert one.mask == together.mask[4]
    np.testing.assert_allclose(head.probability(one.score), head.probability(together.score)[4])


def test_torch_runs_the_same_lines_with_gradients() -> None:
    torch = pytest.importorskip("torch")
    arrays = tensors(dtype="float32")
    batch = spectra().astype(np.float32)
    weights = {name: torch.from_numpy(v.copy()).requires_grad_() for name, v in arrays.items()}
    head = OriginalHead.from_tensors(weights)
    spectrum = torch.from_numpy(batch).requires_grad_()
    found = head.similarity(spectrum)
    expected = OriginalHead.from_tensors(arrays).similarity(batch)
    np.testing.assert_allclose(found.score.detach(), expected.score, rtol=1e-5)
    np.testing.assert_allclose(found.map.detach(), expected.map, atol=1e-7)
    np.testing.assert_array_equal(found.mask, expected.mask)
    head.probability(found.score).sum().backward()
    won = set(found.mask.tolist())
    for name, tensor in weights.items():
        index = name.rpartition(".")[2]
        used = not index.isdigit() or int(index) in won
        assert torch.isfinite(tensor.grad).all(), name
        assert bool((tensor.grad != 0).any()) == used, name
    assert torch.isfinite(spectrum.grad).all()


def test_a_reference_found_in_the_image_has_similarity_one() -> None:
    arrays = tensors(masks=2)
    arrays["in_conv_fft.0.weight"] = np.eye(3)[:, :, None, None]
    arrays["mask_pre_activ_list.1"][:] = 200.0  # the mask lets all through
    arrays["mask_conv.weight"][:] = 0
    arrays["mask_conv.weight"][:, :, 1, 1] = 1
    for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        arrays[f"norm_vector.{part}"][:] = value
    reference = arrays["ref_pattern_list.1"]
    centred = reference - reference.mean(axis=(1, 2), keepdims=True)
    head = OriginalHead.from_tensors(arrays)
    found = head.similarity(np.stack([centred, 4 * centred]))
    np.testing.assert_allclose(found.score, 1, rtol=1e-12)
    assert found.mask.tolist() == [1, 1]
    opposite = OriginalHead.from_tensors({**arrays, "ref_pattern_list.0": reference})
    assert float(opposite.similarity(-centred).score) > -1


def test_equal_masks_give_the_first() -> None:
    arrays = tensors(masks=2)
    for part in ("ref_pattern_list", "mask_pre_activ_list"):
        arrays[f"{part}.1"] = arrays[f"{part}.0"]
    assert OriginalHead.from_tensors(arrays).similarity(spectra()).mask.tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-9, 1e-12, 0.0])
def test_tiny_vectors_are_those_of_torch(scale: float) -> None:
    torch = pytest.importorskip("torch")
    vectors = np.random.default_rng(2).standard_normal((2, 4, 3, 5, 5))
    a, b = vectors * np.array([scale, 1.0]).reshape(2, 1, 1, 1, 1)
    shown = model.similarity_map(a, model.unit_vectors(b))
    flat = [torch.from_numpy(v).flatten(2) for v in (a, b)]
    expected = torch.nn.functional.cosine_similarity(*flat, dim=2, eps=1e-8)
    np.testing.assert_allclose(model.channel_cosines(shown), expected, rtol=1e-12, atol=0)


def test_nothing_has_no_similarity() -> None:
    arrays = tensors()
    arrays["norm_vector.weight"][:] = 0
    arrays["norm_vector.bias"][:] = 0
    found = OriginalHead.from_tensors(arrays).similarity(spectra())
    assert not found.score.any()
    assert not found.map.any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_is_accurate_and_never_overflows(dtype: str) -> None:
    x = np.array([-1e30, -90, -60, -20, -1, 0, 1, 20, 1e30], dtype=dtype)
    found = model.sigmoid(x)
    assert found.dtype == x.dtype
    assert found[0] < 1e-30
    assert found[-1] == 1
    inner = x[2:-1].astype(np.float64)
    np.testing.assert_allclose(found[2:-1], 1 / (1 + np.exp(-inner)), rtol=3e-6)


def test_sigmoid_has_its_gradient() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([-3.0, 0.0, 2.0], requires_grad=True, dtype=torch.float64)
    model.sigmoid(x).sum().backward()
    p = torch.sigmoid(x.detach())
    np.testing.assert_allclose(x.grad, p * (1 - p), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_blur_is_a_correlation_with_zeros_outside(size: int) -> None:
    rng = np.random.default_rng(1)
    picture, kernel = rng.random((2, 3, 6, 7)), rng.random((3, size, size))
    reach = size // 2
    expected = np.zeros_like(picture)
    for y, x in np.ndindex(6, 7):
        for i, j in np.ndindex(size, size):
            row, column = y + i - reach, x + j - reach
            if 0 <= row < 6 and 0 <= column < 7:
                expected[:, :, y, x] += kernel[:, i, j] * picture[:, :, row, column]
    np.testing.assert_allclose(model.blur(picture, kernel), expected, rtol=1e-12)


def test_mixing_is_a_1x1_convolution() -> None:
    rng = np.random.default_rng(1)
    spectrum, mixing = rng.random((2, 4, 3, 6, 7)), rng.random((5, 3))
    expected = np.einsum("dc,abchw->abdhw", mixing, spectrum)
    np.testing.assert_allclose(model.mix_channels(spectrum, mixing), expected, rtol=1e-12)


def test_half_precision_is_computed_in_single() -> None:
    half = {name: values.astype(np.float16) for name, values in tensors().items()}
    head = OriginalHead.from_tensors(half)
    single = OriginalHead.from_tensors({n: v.astype(np.float32) for n, v in half.items()})
    assert head.masks.dtype == np.float32
    spectrum = spectra().astype(np.float32)
    np.testing.assert_array_equal(
        head.similarity(spectrum).score, single.similarity(spectrum).score
    )


def test_unfit_tensors_are_listed() -> None:
    arrays = tensors()
    del arrays["clf_b"]
    arrays["extra"] = np.zeros(3)
    arrays["ref_pattern_list.1"] = np.zeros((3, 20, 21))
    with pytest.raises(ModelError) as caught:
        OriginalHead.from_tensors(arrays)
    assert caught.value.code == "model_invalid"
    for part in (
        "clf_b is missing",
        "extra is unknown",
        "ref_pattern_list.1 has shape (3, 20, 21), expected (3, 20, 20)",
    ):
        assert part in str(caught.value)
    with pytest.raises(ModelError, match=r"ref_pattern_list\.0 is missing"):
        OriginalHead.from_tensors({})
    with pytest.raises(ModelError, match=r"expected \(3, 30, 30\)"):
        model.check_tensors(tensors(), size=30)
    with pytest.raises(ModelError, match=r"ref_pattern_list\.2 is missing"):
        model.check_tensors(tensors(), masks=3)


# --- the shared recipe ---------------------------------------------------------------------------


def shared_tensors(generators: int = 3, seed: int = 6) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shape = (generators, 4, 6, 5)
    references = rng.standard_normal(shape)
    references /= np.sqrt((references**2).sum(axis=(1, 2, 3), keepdims=True))
    found = {
        "mean": rng.standard_normal(shape[1:]),
        "deviation": rng.uniform(0.5, 2, shape[1:]),
        "masks": rng.uniform(0, 1, shape),
        "references": references,
        "a": rng.uniform(0, 2, generators),
        "b": rng.uniform(-1, 1, generators),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


def shared_features(*batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(2, 3, (*batch, 4, 6, 5)).astype(np.float32)


def test_standardise_by_hand() -> None:
    tensors = shared_tensors()
    features = shared_features(2).astype(np.float64)
    found = model.standardise(features, tensors["mean"], tensors["deviation"], 1.5)
    for b, c in np.ndindex(2, 4):
        plane = features[b, c] - features[b, c].mean()
        expected = (plane - tensors["mean"][c]) / tensors["deviation"][c]
        np.testing.assert_allclose(found[b, c], expected.clip(-1.5, 1.5), rtol=1e-9)
    assert found.max() == 1.5
    assert found.min() == -1.5


def test_standardise_does_not_see_the_level_of_a_channel() -> None:
    # A brighter image or a louder sensor multiplies the power: it adds to the logarithm.
    tensors = shared_tensors()
    features = shared_features(3)
    louder = features + np.array([0.0, 5.0, -2.0, 1.0], np.float32)[:, None, None]
    arguments = (tensors["mean"], tensors["deviation"], 6.0)
    np.testing.assert_allclose(
        model.standardise(louder, *arguments),
        model.standardise(features, *arguments),
        atol=1e-5,
    )
    heads = SharedHeads.from_tensors(tensors, 6.0)
    np.testing.assert_allclose(heads.similarities(louder), heads.similarities(features), atol=1e-5)


def test_the_shared_similarity_is_the_cosine_and_the_sum_of_the_map() -> None:
    tensors = shared_tensors()
    heads = SharedHeads.from_tensors(tensors, 2.0)
    features = shared_features(2, 3)
    maps, similarity = heads.maps(features), heads.similarities(features)
    assert maps.shape == (2, 3, 3, 4, 6, 5)
    assert similarity.shape == (2, 3, 3)
    assert maps.dtype == similarity.dtype == np.float32
    np.testing.assert_array_equal(maps.sum(axis=(-3, -2, -1)), similarity)
    z = model.standardise(features, tensors["mean"], tensors["deviation"], 2.0).astype(np.float64)
    for g in range(3):
        masked = (z * tensors["masks"][g]).reshape(2, 3, -1)
        reference = tensors["references"][g].astype(np.float64).ravel()
        cosine = masked @ reference / np.linalg.norm(masked, axis=-1) / np.linalg.norm(reference)
        np.testing.assert_allclose(similarity[..., g], cosine, atol=1e-6)
    assert np.abs(similarity).max() <= 1
    one = heads.similarities(features[1, 2])
    np.testing.assert_allclose(one, similarity[1, 2], atol=1e-6)


def test_the_shared_similarity_does_not_depend_on_scales() -> None:
    tensors = shared_tensors()
    features = shared_features(4)
    expected = SharedHeads.from_tensors(tensors, 1e9).similarities(features)
    for name, factor in (("masks", 0.25), ("references", 7.0), ("references", 1e-3)):
        changed = {**tensors, name: tensors[name] * np.float32(factor)}
        found = SharedHeads.from_tensors(changed, 1e9)
        np.testing.assert_allclose(found.similarities(features), expected, atol=1e-6)
        norms = np.sqrt((found.references**2).sum(axis=(1, 2, 3)))
        np.testing.assert_allclose(norms, 1, rtol=1e-5)
    # A pattern twice as strong, in deviations from the mean photo, is as alike.
    mean = tensors["mean"] - tensors["mean"].mean((1, 2), keepdims=True)
    centred = SharedHeads.from_tensors({**tensors, "mean": mean}, 1e9)
    pattern = features - features.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(
        centred.similarities(mean + 2 * pattern), centred.similarities(mean + pattern), atol=1e-6
    )


def test_a_planted_reference_has_shared_similarity_one() -> None:
    tensors = shared_tensors()
    tensors["masks"][:] = 1
    tensors["references"] -= tensors["references"].mean(axis=(2, 3), keepdims=True)
    tensors["mean"] -= tensors["mean"].mean(axis=(1, 2), keepdims=True)
    tensors["deviation"][:] = 1
    heads = SharedHeads.from_tensors(tensors, 6.0)
    planted = tensors["mean"] + 3 * tensors["references"]
    similarity = heads.similarities(planted)
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)
    opposite = heads.similarities(tensors["mean"] - 3 * tensors["references"])
    np.testing.assert_allclose(np.diag(opposite), -1, atol=1e-5)


def test_the_mean_photo_is_like_nothing() -> None:
    tensors = shared_tensors()
    tensors["mean"][:] = 0
    heads = SharedHeads.from_tensors(tensors, 6.0)
    assert not heads.similarities(tensors["mean"] + 3).any()
    assert not heads.maps(tensors["mean"]).any()


def test_the_shared_probability() -> None:
    tensors = shared_tensors()
    heads = SharedHeads.from_tensors(tensors, 6.0)
    similarity = np.linspace(-1, 1, 21, dtype=np.float32)[:, None].repeat(3, axis=1)
    found = heads.probability(similarity)
    exact = 1 / (1 + np.exp(-(np.exp(tensors["a"].astype(float)) * similarity + tensors["b"])))
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert (np.diff(found, axis=0) > 0).all()


def test_half_precision_heads_are_computed_in_single() -> None:
    half = {name: values.astype(np.float16) for name, values in shared_tensors().items()}
    heads = SharedHeads.from_tensors(half, 6.0)
    single = {name: values.astype(np.float32) for name, values in half.items()}
    features = shared_features(2)
    assert heads.similarities(features).dtype == np.float32
    np.testing.assert_array_equal(
        heads.similarities(features), SharedHeads.from_tensors(single, 6.0).similarities(features)
    )


def test_torch_runs_the_shared_heads() -> None:
    torch = pytest.importorskip("torch")
    tensors = shared_tensors()
    weights = {name: torch.from_numpy(v.copy()).requires_grad_() for name, v in tensors.items()}
    heads = SharedHeads.from_tensors(weights, 2.0)
    features = shared_features(2, 3)
    expected = SharedHeads.from_tensors(tensors, 2.0)
    tensor = torch.from_numpy(features).requires_grad_()
    similarity = heads.similarities(tensor)
    np.testing.assert_allclose(heads.maps(tensor).detach(), expected.maps(features), atol=1e-6)
    np.testing.assert_allclose(similarity.detach(), expected.similarities(features), atol=1e-6)
    np.testing.assert_allclose(
        heads.probability(similarity).detach(),
        expected.probability(expected.similarities(features)),
        atol=1e-6,
    )
    heads.probability(similarity).sum().backward()
    for name, weight in [*weights.items(), ("features", tensor)]:
        assert torch.isfinite(weight.grad).all(), name
        assert (weight.grad != 0).any(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "expected"),
        ({"more": np.zeros(3)}, "more"),
        ({"mean": np.zeros((4, 6, 6))}, "misshapen arrays: .'mean'"),
        ({"a": np.zeros(4)}, "misshapen arrays: .'a'"),
        ({"references": np.zeros((2, 4, 6, 5))}, "misshapen arrays: .'references'"),
        ({"masks": np.zeros((4, 6, 5))}, "misshapen"),
        ({"masks": np.float32(1)}, "misshapen"),
    ],
)
def test_unfit_shared_tensors_are_refused(change: dict[str, Any], message: str) -> None:
    arrays = {name: v for name, v in {**shared_tensors(), **change}.items() if v is not None}
    with pytest.raises(ModelError, match=message) as caught:
        SharedHeads.from_tensors(arrays, 6.0)
    assert caught.value.code == "model_invalid"


# --- whitening, and heads for each band ----------------------------------------------------------


def orthonormal(count: int, seed: int = 8) -> NDArray[np.float32]:
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((120, count)))[0]
    return np.asarray(q.T.reshape(count, 4, 6, 5), np.float32)


def test_whitening_is_a_linear_map() -> None:
    basis, shrink = orthonormal(7), np.linspace(0, 1, 7, dtype=np.float32)
    z = shared_features(2, 3)
    flat = basis.reshape(7, 120).astype(float)
    dense = np.eye(120) - flat.T @ np.diag(shrink.astype(float)) @ flat
    found = model.whiten(z, basis, shrink)
    assert found.shape == z.shape
    np.testing.assert_allclose(found.reshape(6, 120), z.reshape(6, 120) @ dense, atol=1e-4)
    one = model.whiten(z[0, 0], basis, shrink)
    np.testing.assert_allclose(one, found[0, 0], atol=1e-5)
    # A component with a share of 1 is gone, one with 0 untouched.
    along = found.reshape(6, 120) @ flat.T
    np.testing.assert_allclose(along[:, -1], 0, atol=1e-4)
    np.testing.assert_allclose(along[:, 0], z.reshape(6, 120) @ flat[0], atol=1e-4)


def test_torch_whitens_the_same() -> None:
    torch = pytest.importorskip("torch")
    basis, shrink = orthonormal(5), np.linspace(0, 1, 5, dtype=np.float32)
    z = shared_features(3)
    found = model.whiten(*(torch.from_numpy(part) for part in (z, basis, shrink)))
    np.testing.assert_allclose(found, model.whiten(z, basis, shrink), atol=1e-5)


def banded_tensors(bands: int = 3, components: int = 4) -> dict[str, NDArray[np.float32]]:
    each = [shared_tensors(seed=20 + b) for b in range(bands)]
    found = {name: np.stack([one[name] for one in each]) for name in each[0]}
    if components:
        found["basis"] = orthonormal(components)
        found["shrink"] = np.linspace(0.2, 0.9, components, dtype=np.float32)
    return found


def test_each_band_is_a_set_of_heads() -> None:
    tensors = banded_tensors(components=0)
    heads = model.heads_by_band(tensors, 6.0)
    assert len(heads) == 3
    features = shared_features(4)
    for b, head in enumerate(heads):
        alone = SharedHeads.from_tensors({name: v[b] for name, v in tensors.items()}, 6.0)
        np.testing.assert_array_equal(head.maps(features), alone.maps(features))
        np.testing.assert_array_equal(head.compared(features), head.standardise(features))


def test_the_similarity_is_the_cosine_of_what_is_whitened() -> None:
    tensors = banded_tensors()
    features = shared_features(4).astype(np.float32)
    for b, head in enumerate(model.heads_by_band(tensors, 6.0)):
        z = model.standardise(features, tensors["mean"][b], tensors["deviation"][b], 6.0)
        z = model.whiten(z, tensors["basis"], tensors["shrink"]).astype(float)
        np.testing.assert_allclose(head.compared(features), z, atol=1e-5)
        for g in range(3):
            masked = (z * tensors["masks"][b, g]).reshape(4, -1)
            reference = tensors["references"][b, g].ravel().astype(float)
            expected = masked @ reference / np.linalg.norm(masked, axis=1)
            np.testing.assert_allclose(head.similarities(features)[:, g], expected, atol=1e-5)
    # How far an image is from photos is told before whitening.
    assert head.distance(features[0]) == pytest.approx(
        float(np.log((head.standardise(features[0]) ** 2).mean())), abs=1e-5
    )


def test_bands_of_length_one_are_the_same_for_all() -> None:
    tensors = banded_tensors()
    for name in ("masks", "references", "a"):
        tensors[name] = tensors[name][:1]
    heads = model.heads_by_band(tensors, 6.0)
    assert len(heads) == 3
    np.testing.assert_array_equal(heads[0].masks, heads[2].masks)
    assert np.abs(heads[0].mean - heads[2].mean).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "expected"),
        ({"basis": None}, "expected"),  # a share without what it is of
        ({"shrink": None}, "expected"),
        ({"odd": np.zeros(3)}, "odd"),
        ({"mean": np.zeros((2, 4, 6, 5))}, "misshapen arrays: .'mean'"),
        ({"mean": np.zeros((3, 4, 5, 6))}, "misshapen arrays: .'mean'"),
        ({"a": np.zeros((3, 4))}, "misshapen arrays: .'a'"),
        ({"a": np.float32(1)}, "misshapen arrays: .'a'"),
        ({"masks": np.zeros((3, 4, 6, 5))}, "misshapen"),
        ({"masks": np.zeros((4, 3, 4, 6, 5))}, "misshapen"),
        ({"basis": np.zeros((5, 4, 6, 5))}, "misshapen arrays: .'basis'"),
        ({"basis": np.zeros((4, 120))}, "misshapen arrays: .'basis'"),
        ({"shrink": np.zeros((4, 1))}, "misshapen arrays: .'basis'"),
    ],
)
def test_unfit_tensors_of_bands_are_refused(change: dict[str, Any], message: str) -> None:
    arrays = {name: v for name, v in {**banded_tensors(), **change}.items() if v is not None}
    with pytest.raises(ModelError, match=message) as caught:
        model.heads_by_band(arrays, 6.0)
    assert caught.value.code == "model_invalid"
