"""How much each view counts in a fit, and which views are left out together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from masksim.augment import rng_for
from masksim.data.manifest import REAL
from masksim.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def history_weights(
    histories: NDArray[np.str_], classes: Sequence[NDArray[np.bool_]], shares: Mapping[str, float]
) -> NDArray[np.float64]:
    """Weights that give several classes the same shares of histories.

    Parameters
    ----------
    histories
        (n,).
    classes
        Masks (n,), disjoint.
    shares
        Wanted share of each history. A history that one of the classes lacks is left out for all.

    Returns
    -------
    ndarray
        (n,), summing to 1 within each class; 0 outside of them.
    """
    common = [
        h for h in shares if shares[h] > 0 and all((c & (histories == h)).any() for c in classes)
    ]
    if not common:
        raise DataError("the classes have no history in common", code="manifest_invalid")
    total = sum(shares[h] for h in common)
    weights = np.zeros(len(histories))
    for mask in classes:
        for history in common:
            chosen = mask & (histories == history)
            weights[chosen] = shares[history] / total / chosen.sum()
    return weights


def training_weights(
    generators: NDArray[np.str_],
    sources: NDArray[np.str_],
    histories: NDArray[np.str_],
    shares: Mapping[str, float],
) -> NDArray[np.float64]:
    """Weights of training views: histories by `shares`, sources by the root of their size.

    Parameters
    ----------
    generators, sources, histories
        (n,).
    shares
        Wanted share of each history; a class that lacks one has the others instead.

    Returns
    -------
    ndarray
        (n,), summing to 1 within each generator and within the reals.
    """
    pairs = list(zip(generators.tolist(), sources.tolist(), strict=True))
    size = Counter(pairs)
    weights = np.array([size[pair] ** -0.5 for pair in pairs])
    for generator in np.unique(generators):
        own = generators == generator
        present = [h for h in shares if shares[h] > 0 and (own & (histories == h)).any()]
        total = sum(shares[h] for h in present)
        weights[own & ~np.isin(histories, present)] = 0
        for history in present:
            chosen = own & (histories == history)
            weights[chosen] *= shares[history] / total / weights[chosen].sum()
    return weights


def source_folds(
    generators: NDArray[np.str_], sources: NDArray[np.str_], keys: Sequence[str], count: int
) -> NDArray[np.int64]:
    """Folds for cross-validation, by source; a generator with few sources by image.

    Reals are always parted by source: what is measured is false alarms on sources never seen.

    Parameters
    ----------
    generators, sources
        (n,).
    keys
        n names of the views' images: views of the same image have the same.
    count
        Number of folds.

    Returns
    -------
    ndarray
        (n,), 0..count - 1.
    """
    folds = np.zeros(len(keys), dtype=np.int64)
    for generator in np.unique(generators):
        own = generators == generator
        sizes = Counter(sources[own].tolist())
        if generator == REAL or len(sizes) >= count:
            load = [0] * count
            for source, n in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
                least = int(np.argmin(load))
                load[least] += n
                folds[own & (sources == source)] = least
        else:
            for i in np.flatnonzero(own).tolist():
                folds[i] = rng_for("fold", keys[i]).integers(count)
    return folds


def matched_real_weights(
    classes: NDArray[np.int64], weights: NDArray[np.float64], histories: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Weights of the reals that give them each generator's own shares of histories.

    A generator of 512-pixel images has no ``reduced`` views: set against all reals, its direction
    would in part be that of "never reduced".

    Parameters
    ----------
    classes
        (n,), see `masksim.training.heads.fisher_coefficients`.
    weights
        (n,).
    histories
        (n,).

    Returns
    -------
    ndarray
        (n, G), 0 outside of class 0.
    """
    count = int(classes.max())
    out = np.zeros((len(classes), count))
    for history in np.unique(histories):
        same = histories == history
        real = same & (classes == 0)
        total = weights[real].sum()
        if not total > 0:
            continue
        for g in range(count):
            own = weights[same & (classes == g + 1)].sum() / weights[classes == g + 1].sum()
            out[real, g] = weights[real] / total * own
    return out


def view_weights(
    classes: NDArray[np.int64],
    sources: NDArray[np.str_],
    histories: NDArray[np.str_],
    lossless: float,
) -> NDArray[np.float64]:
    """Weights of training views: repositories by the root of their size, lossless ones bounded.

    Returns
    -------
    ndarray
        (n,), 1 in sum within each class; 0 for views of class -1.
    """
    pairs = list(zip(classes.tolist(), sources.tolist(), strict=True))
    size = Counter(pairs)
    weights = np.array([size[pair] ** -0.5 for pair in pairs])
    weights[classes < 0] = 0.0
    for c in np.unique(classes[classes >= 0]):
        own = classes == c
        without = own & (histories == "lossless")
        rest = weights[own & ~without].sum()
        most = lossless / (1 - lossless) * rest if lossless < 1 and rest > 0 else np.inf
        if weights[without].sum() > most:
            weights[without] *= most / weights[without].sum()
        weights[own] /= weights[own].sum()
    return weights


def weights_by_band(
    classes: NDArray[np.int64],
    sources: NDArray[np.str_],
    histories: NDArray[np.str_],
    band: NDArray[np.int64],
    lossless: float,
) -> NDArray[np.float64]:
    """Give `view_weights` of each band of compression: (n,), 1 in sum within each class in each."""
    weights = np.zeros(len(classes))
    for b in np.unique(band).tolist():
        own = band == b
        weights[own] = view_weights(classes[own], sources[own], histories[own], lossless)
    return weights


def repository_folds(
    sources: NDArray[np.str_], generators: NDArray[np.str_], count: int
) -> NDArray[np.int64]:
    """Part views into folds so that all of a repository, of whatever class, is in one.

    So are all repositories of one owner (``owner/name``), who may use the same pictures again.

    Parameters
    ----------
    sources, generators
        (n,).
    count
        Number of folds; each class is spread over them as evenly as whole repositories allow.

    Returns
    -------
    ndarray
        (n,), 0 .. count - 1.
    """
    sources = np.array([source.partition("/")[0] for source in sources.tolist()])
    total = Counter(generators.tolist())
    of: dict[str, Counter[str]] = {}
    for source, generator in zip(sources.tolist(), generators.tolist(), strict=True):
        of.setdefault(source, Counter())[generator] += 1
    load: list[Counter[str]] = [Counter() for _ in range(count)]
    fold: dict[str, int] = {}
    order = sorted(of, key=lambda s: (-max(n / total[g] for g, n in of[s].items()), s))
    for source in order:
        cost = [
            (sum(load[k][g] / total[g] * n / total[g] for g, n in of[source].items()),
             sum(load[k].values()))
            for k in range(count)
        ]  # fmt: skip
        fold[source] = min(range(count), key=lambda k: cost[k])
        load[fold[source]].update(of[source])
    return np.array([fold[source] for source in sources.tolist()], dtype=np.int64)
