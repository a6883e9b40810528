"""`masksim.data.weights`: weights that balance, and folds that keep together what belongs so."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from masksim.data.manifest import REAL, Row
from masksim.data.weights import (
    history_weights,
    matched_real_weights,
    repository_folds,
    source_folds,
    training_weights,
    view_weights,
)
from masksim.errors import DataError


class Views(NamedTuple):
    generators: NDArray[np.str_]
    sources: NDArray[np.str_]
    histories: NDArray[np.str_]
    keys: NDArray[np.str_]

    def take(self, chosen: NDArray[Any]) -> Views:
        return Views(*(column[chosen] for column in self))

    def folds(self, count: int) -> NDArray[np.int64]:
        return source_folds(self.generators, self.sources, self.keys.tolist(), count)


def made_views(n: int, seed: int, images_a_source: int = 7) -> Views:
    """Rows of three classes in many sources of unlike sizes, three views each."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        generator = str(rng.choice([REAL, "many", "few"], p=[0.6, 0.25, 0.15]))
        sources = {REAL: n // images_a_source, "many": 12, "few": 2}[generator]
        source = f"{generator}-{int(sources * rng.random() ** 2)}"
        rows.append(Row(f"{i}.png", generator, source, "train", sha256=f"{i:064x}"))
    seen = [rows[i] for i in np.repeat(np.arange(n), 3)]
    return Views(
        np.array([row.generator for row in seen]),
        np.array([row.source for row in seen]),
        np.array(["jpeg", "reduced", "lossless"])[rng.choice(3, 3 * n, p=[0.5, 0.3, 0.2])],
        np.array([row.key for row in seen]),
    )


SHARES = {"jpeg": 0.75, "reduced": 0.2, "lossless": 0.05}


def test_history_weights_give_all_classes_the_same_shares() -> None:
    views = made_views(200, 0)
    classes = [views.generators == name for name in (REAL, "many")]
    weights = history_weights(views.histories, classes, SHARES)
    assert not weights[views.generators == "few"].any()
    for own in classes:
        assert weights[own].sum() == pytest.approx(1)
        for history, share in SHARES.items():
            chosen = own & (views.histories == history)
            assert weights[chosen].sum() == pytest.approx(share)
            assert len(set(weights[chosen].tolist())) == 1


def test_a_history_that_one_class_lacks_is_left_out_for_all() -> None:
    histories = np.array(["jpeg", "jpeg", "lossless", "jpeg", "reduced", "reduced", "lossless"])
    real = np.arange(7) < 3
    weights = history_weights(histories, [real, ~real], SHARES)
    # Reals have no `reduced`: 0.75 and 0.05 are left, of 0.8.
    expected = [0.46875, 0.46875, 0.0625, 0.9375, 0, 0, 0.0625]
    np.testing.assert_allclose(weights, expected)
    with pytest.raises(DataError, match="no history in common"):
        history_weights(histories, [histories == "jpeg", histories == "reduced"], SHARES)
    none = {"jpeg": 1.0, "reduced": 0.0, "lossless": 0.0}
    lossless = histories == "lossless"
    with pytest.raises(DataError, match="no history in common"):
        history_weights(histories, [lossless & real, lossless & ~real], none)


def test_training_weights() -> None:
    views = made_views(300, 1)
    weights = training_weights(*views[:3], SHARES)
    size = Counter(views.sources.tolist())
    for name in (REAL, "many", "few"):
        own = views.generators == name
        assert weights[own].sum() == pytest.approx(1)
        for history, share in SHARES.items():
            chosen = np.flatnonzero(own & (views.histories == history))
            assert weights[chosen].sum() == pytest.approx(share)
            # A source of four times the size counts twice as much, each of its views half.
            scaled = weights[chosen] * np.sqrt([size[views.sources[i]] for i in chosen])
            np.testing.assert_allclose(scaled, scaled[0])


def test_training_weights_of_a_class_that_lacks_a_history() -> None:
    views = made_views(100, 2)
    kept = ~((views.generators == "few") & (views.histories == "jpeg"))
    views = views.take(kept)
    weights = training_weights(*views[:3], SHARES)
    few = views.generators == "few"
    assert weights[few].sum() == pytest.approx(1)
    assert weights[few & (views.histories == "reduced")].sum() == pytest.approx(0.8)
    none = training_weights(*views[:3], {"jpeg": 1.0, "reduced": 0.0, "lossless": 0.0})
    assert not none[views.histories != "jpeg"].any()
    assert none[views.generators == REAL].sum() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 5, 9])
def test_folds_never_part_a_source_of_photos(seed: int, count: int) -> None:
    views = made_views(250, seed)
    folds = views.folds(count)
    assert folds.min() >= 0
    assert folds.max() < count
    for name in (REAL, "many") if count <= 9 else (REAL,):
        own = views.generators == name
        sources = set(views.sources[own].tolist())
        if name != REAL and len(sources) < count:
            continue
        for source in sources:
            assert len(set(folds[own & (views.sources == source)].tolist())) == 1
        # Even: the largest fold exceeds the smallest by no more than the largest source.
        load = np.bincount(folds[own], minlength=count)
        largest = Counter(views.sources[own].tolist()).most_common(1)[0][1]
        assert load.max() - load.min() <= largest
        assert load.min() > 0


def test_few_sources_are_parted_by_image_never_by_view() -> None:
    views = made_views(400, 3)
    folds = views.folds(4)
    few = views.generators == "few"  # two sources, four folds
    for image in np.unique(views.keys[few]):
        assert len(set(folds[views.keys == image].tolist())) == 1
    assert set(folds[few].tolist()) == {0, 1, 2, 3}
    shuffled = views.take(np.arange(len(views.keys))[::-1])
    np.testing.assert_array_equal(shuffled.folds(4)[::-1], folds)


def test_photos_of_one_source_are_in_one_fold() -> None:
    views = made_views(50, 4, images_a_source=50)
    folds = views.folds(3)
    assert len(set(folds[views.generators == REAL].tolist())) == 1


def test_photos_are_matched_to_the_histories_of_each_generator() -> None:
    rng = np.random.default_rng(10)
    classes = rng.integers(-1, 3, 400)
    kinds = np.array(["jpeg", "reduced", "lossless"])
    histories = kinds[rng.choice(3, 400, p=[0.6, 0.3, 0.1])]
    histories[(classes == 2) & (histories == "reduced")] = "jpeg"
    weights = rng.uniform(0, 1, 400)
    found = matched_real_weights(classes, weights, histories)
    assert found.shape == (400, 2)
    assert not found[classes != 0].any()
    for g in range(2):
        for history in np.unique(histories):
            real, own = (classes == 0) & (histories == history), classes == g + 1
            share = weights[own & (histories == history)].sum() / weights[own].sum()
            assert found[real, g].sum() == pytest.approx(share)
            if share:
                ratio = found[real, g] / weights[real]
                np.testing.assert_allclose(ratio, ratio[0])
    assert not found[histories == "reduced", 1].any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_keep_repositories_whole_and_classes_balanced(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    sources, generators = [], []
    for name, repositories in ((REAL, 40), ("a", 12), ("b", 25)):
        for k in range(repositories):
            n = int(rng.integers(1, 20))
            # A third of the repositories hold photos as well as images of one generator.
            shared = f"both {k}" if k % 3 == 0 and name != "b" else f"{name} {k}"
            sources += [shared] * n
            generators += [name] * n
    order = rng.permutation(len(sources))
    of, kinds = np.array(sources)[order], np.array(generators)[order]
    folds = repository_folds(of, kinds, count)
    assert set(folds.tolist()) == set(range(count))
    for source in np.unique(of):
        assert len(np.unique(folds[of == source])) == 1
    for name in (REAL, "a", "b"):
        sizes = np.bincount(folds[kinds == name], minlength=count)
        largest = max(Counter(of[kinds == name].tolist()).values())
        # A whole repository more or less, and half as much for those that serve two classes.
        assert np.ptp(sizes) <= 1.5 * largest, (name, sizes)
    again = rng.permutation(len(of))
    np.testing.assert_array_equal(repository_folds(of[again], kinds[again], count), folds[again])


def test_repositories_count_by_the_root_of_their_size() -> None:
    classes = np.array([0] * 16 + [0] * 4 + [1] * 9 + [1] + [-1] * 3)
    sources = np.array(["p"] * 16 + ["q"] * 4 + ["p"] * 9 + ["r"] + ["s"] * 3)
    histories = np.full(len(classes), "jpeg")
    weights = view_weights(classes, sources, histories, 0.1)
    assert (weights[classes < 0] == 0).all()
    for c in (0, 1):
        assert weights[classes == c].sum() == pytest.approx(1)
    real = classes == 0
    assert weights[real & (sources == "p")].sum() == pytest.approx(4 / 6)
    assert weights[(classes == 1) & (sources == "r")].sum() == pytest.approx(1 / 4)


def test_lossless_views_have_a_bounded_share() -> None:
    classes = np.array([0] * 10 + [1] * 10 + [2] * 4)
    sources = np.array([f"s{i}" for i in range(24)])
    histories = np.array(["lossless"] * 6 + ["jpeg"] * 4 + ["jpeg"] * 9 + ["lossless"]
                         + ["lossless"] * 4)  # fmt: skip
    weights = view_weights(classes, sources, histories, 0.2)
    without = histories == "lossless"
    assert weights[(classes == 0) & without].sum() == pytest.approx(0.2)
    assert weights[(classes == 1) & without].sum() == pytest.approx(0.1)  # fewer than the bound
    assert weights[classes == 2].sum() == pytest.approx(1)  # there is nothing else
    free = view_weights(classes, sources, histories, 1.0)
    assert free[(classes == 0) & without].sum() == pytest.approx(0.6)
