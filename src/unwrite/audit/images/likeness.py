"""How alike are two models' features (CKA), and how near are two models by answers and by features, as functions of figures.

CKA is of one matrix of features each, biased as published or debiased (arXiv 1905.00414, 2010.15327). Neither paper text at
hand nor official code of arXiv 2503.06991 has the formulas of AGR and H-LR, so these are this library's, with all in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from ...errors import DataError, MethodError, unknown
from ..base import harmonic_mean as harmonic
from .arrays import ArrayLike, Floats, features_of, same_rows

__all__ = ["BATCH", "agl", "agr", "batched_cka", "cka", "h_lr", "permuted_cka"]

Kernel = Literal["linear", "rbf"]
BATCH = 512


def cka(x: ArrayLike, y: ArrayLike, *, kernel: Kernel = "linear", debiased: bool = False) -> float:
    """Returns CKA of features [rows, dim] of the same rows: <HKH, HLH> / (|HKH| |HLH|), K and L the kernels' Gram matrices.

    In [0, 1] where biased. Biased, unrelated features of as many dims as rows give 0.5, and more with more dims; debiased
    (Song et al., as in arXiv 2010.15327) they give 0 within noise, which may be below 0.

    Args:
        x, y: the dims may differ.
        kernel: "linear", or "rbf", exp(-d^2 / (2 s^2)) with s^2 the median squared distance that isn't 0.
        debiased: needs 4 rows or more.

    Raises:
        MethodError: another kernel.
        DataError: other rows, too few for debiasing, features that are the same for all rows.
    """
    if kernel not in ("linear", "rbf"):
        raise MethodError(unknown("CKA kernel", kernel, ("linear", "rbf")))
    one, other = features_of(x, "x"), features_of(y, "y")
    same_rows(x=one, y=other)
    if debiased and len(one) < 4:
        raise DataError(f"debiased CKA needs 4 rows or more, and there are {len(one)}.")
    left, right = (_centred(_gram(rows, kernel, name), debiased) for rows, name in ((one, "x"), (other, "y")))
    size = math.sqrt((left * left).sum()) * math.sqrt((right * right).sum())
    if size == 0 or not math.isfinite(size):
        raise DataError(f"features of {len(one)} rows have no spread to compare once they are centred.")
    return float((left * right).sum() / size)


def _gram(features: Floats, kernel: Kernel, name: str) -> Floats:
    centred = features - features.mean(0)
    if not centred.any():
        raise DataError(
            f"the {name} features are the same for all {len(features)} rows, so there is nothing to compare."
        )
    products: Floats = centred @ centred.T  # [rows, rows]
    if kernel == "linear":
        return products
    squares = np.diag(products)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(distances, 0.0)
    gram: Floats = np.exp(-distances / (2 * np.median(distances[distances > 0])))
    return gram


def _centred(gram: Floats, debiased: bool) -> Floats:
    """HKH; debiased, the U-centred matrix with zeros on its diagonal, whose products are free of bias."""
    rows = len(gram)
    if not debiased:
        return np.asarray(gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean())
    own = gram.copy()
    np.fill_diagonal(own, 0.0)
    sums = own.sum(0)
    own = own - (sums[:, None] + sums[None, :]) / (rows - 2) + sums.sum() / ((rows - 1) * (rows - 2))
    np.fill_diagonal(own, 0.0)
    return own


def batched_cka(x: ArrayLike, y: ArrayLike, *, batch: int = BATCH, debiased: bool = False) -> float:
    """Returns the mean of CKA over batches of rows in their order, each weighted by its rows.

    A last batch below a quarter of the others is left out: so few rows look alike whatever they are.

    Args:
        x, y: features [rows, dim] of the same rows.
        batch: rows, 4 or more; published figures have 512.

    Raises:
        as `cka`; MethodError: a smaller batch.
    """
    if batch < 4:
        raise MethodError(f"batch is {batch}; CKA of fewer than 4 rows says nothing.")
    one, other = features_of(x, "x"), features_of(y, "y")
    same_rows(x=one, y=other)
    starts = [at for at in range(0, len(one), batch) if at == 0 or 4 * (len(one) - at) >= batch]
    parts = [slice(at, at + batch) for at in starts]
    values = [cka(one[part], other[part], debiased=debiased) for part in parts]
    return float(np.average(values, weights=[len(one[part]) for part in parts]))


def permuted_cka(x: ArrayLike, y: ArrayLike, *, batch: int = BATCH, debiased: bool = False, seed: int = 0) -> float:
    """Returns what `batched_cka` gives where y's rows are shuffled, so that nothing is left to be alike: the null value."""
    other = features_of(y, "y")
    return batched_cka(x, other[np.random.default_rng(seed).permutation(len(other))], batch=batch, debiased=debiased)


def agl(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Returns AGL in [0, 1], the product of 1 - |gap| over sets.

    Args:
        unlearned, retrained: {set: accuracy in [0, 1]}, the same sets.

    Raises:
        DataError: other sets, none, or a figure outside [0, 1].
    """
    return math.prod(1 - abs(_share(unlearned, name) - _share(retrained, name)) for name in _same(unlearned, retrained))


def agr(likeness: Mapping[str, float], unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Returns AGR in [0, 1], the mean over downstream sets of CKA * (1 - |gap of k-NN|).

    Args:
        likeness: {set: CKA to the retrained model}; below 0 (debiased) it counts as 0.
        unlearned, retrained: {set: k-NN accuracy in [0, 1]}.

    Raises:
        DataError: other sets, none, or a figure outside [0, 1].
    """
    names = _same(likeness, unlearned)
    _same(unlearned, retrained)
    alike = {name: max(0.0, min(1.0, float(value))) for name, value in likeness.items()}
    parts = [alike[name] * (1 - abs(_share(unlearned, name) - _share(retrained, name))) for name in names]
    return float(np.mean(parts))


def h_lr(logits: float, features: float) -> float:
    """Returns H-LR in [0, 1], the harmonic mean of AGL and AGR; 0 where one of them is."""
    for name, value in (("AGL", logits), ("AGR", features)):
        if not 0 <= value <= 1:
            raise DataError(f"{name} is {value:g}; it lies in [0, 1].")
    return harmonic([logits, features])


def _same(one: Mapping[str, float], other: Mapping[str, float]) -> list[str]:
    if not one or set(one) != set(other):
        odd = ", ".join(sorted(set(one) ^ set(other))) or "none"
        raise DataError(f"both models must have figures of the same sets; only one of them has: {odd}.")
    return list(one)


def _share(values: Mapping[str, float], name: str) -> float:
    value = float(values[name])
    if not 0 <= value <= 1:
        raise DataError(f"the figure of {name} is {value:g}; give shares in [0, 1].")
    return value
