"""Every spectral measure once more, for one matrix at a time: float64 loops instead of batches, quadrature instead of formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import erfc, log_ndtr

Array = npt.NDArray[np.float64]
Row = dict[str, float]

NAN = float("nan")


def weights_row(
    matrix: Array, eps: float, stored: float, *, min_tail: int | None = None, two_sided: bool = False, null: Array | None = None
) -> Row:
    """Norms, power law and Marchenko-Pastur measures; `stored` is the root mean square of the numbers that rounding to eps was done to."""
    values = np.linalg.svd(matrix, compute_uv=False)
    significant = above_rounding(values, matrix.shape, eps, stored)
    return norms(values, significant) | power_law(significant, matrix.shape, min_tail, two_sided) | bulk(matrix, significant, null)


def pair_row(tuned: Array, base: Array, eps: float) -> Row:
    """Agreement, rotation and scaling of two matrices (residual, head)."""
    left, new, right = np.linalg.svd(tuned, full_matrices=False)
    left_base, old, right_base = np.linalg.svd(base, full_matrices=False)
    found: Row = {}
    overlaps = {"residual": left_base.T @ left, "head": right_base @ right.T}
    for (side, overlap), size in zip(overlaps.items(), tuned.shape, strict=True):
        agreement, count = abs(overlap), len(overlap)
        found[f"agreement_{side}_max"] = sum(max(row) for row in agreement) / count
        found[f"agreement_{side}_diagonal"] = sum(agreement[i, i] for i in range(count)) / count
        found[f"agreement_{side}_noise"] = min(1.0, math.sqrt(2 * math.log(count) / size))
    together = overlaps["residual"].T @ overlaps["head"]
    found["rotation_nf"] = math.sqrt(((together - np.eye(len(together))) ** 2).sum()) / len(together)
    kept = above_rounding(old, base.shape, eps, math.sqrt(float((base**2).mean())))
    factors = [end / start for end, start in zip(new, kept, strict=True) if start > 0][: math.ceil(0.9 * len(new))]
    found["svsm_mean"] = sum(factors) / len(factors)
    found["svsm_std"] = math.sqrt(sum((factor - found["svsm_mean"]) ** 2 for factor in factors) / len(factors))
    return found


def above_rounding(values: Array, shape: tuple[int, ...], eps: float, stored: float) -> Array:
    """The values with zeros for those that rounding errors of eps times what is stored could make."""
    errors = eps / math.sqrt(12) * stored * sum(math.sqrt(side) for side in shape)
    return np.where(values > max(errors, max(shape) * np.finfo(np.float64).eps * values[0]), values, 0.0)


def norms(values: Array, significant: Array) -> Row:
    shares = [value / sum(values) for value in values]
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    there = [value for value in significant if value > 0]
    logs = [math.log(place) for place in range(1, len(there) + 1)]
    fitted = len(there) > 1
    return {
        "frobenius_norm": math.sqrt(sum(value**2 for value in values)),
        "spectral_norm": values[0],
        "stable_rank": sum(value**2 for value in values) / values[0] ** 2,
        "spectral_entropy": entropy,
        "effective_rank": math.exp(entropy),
        "hard_rank": len(there),
        "spectral_gap": there[0] / there[1] if fitted else NAN,
        "rank_decay_alpha": -np.polyfit(logs, np.log(there), 1, w=np.sqrt(there))[0] if fitted else NAN,
    }


def power_law(significant: Array, shape: tuple[int, ...], min_tail: int | None, two_sided: bool) -> Row:
    """Every cut-off is tried; of equals the longest tail wins."""
    eigenvalues = [value**2 / max(shape) for value in significant if value > 0]
    rank = len(eigenvalues)
    alpha, ks, count = fitted_law(eigenvalues, min_tail or max(10, math.ceil(rank / 10)), two_sided)
    suspect = 2.0 if alpha > 8 or count < 10 else 0.0 if 1.5 < alpha < 5 else 1.0
    return {
        "pl_alpha": alpha,
        "pl_ks": ks,
        "pl_xmin": eigenvalues[count - 1] if count else NAN,
        "pl_tail": count or NAN,
        "pl_stderr": (alpha - 1) / math.sqrt(count) if count else NAN,
        "pl_rank": rank,
        "pl_suspect": suspect if count else NAN,
        "weighted_alpha": alpha * math.log10(eigenvalues[0]) if count else NAN,
    }


def fitted_law(eigenvalues: list[float], fewest: int, two_sided: bool = False) -> tuple[float, float, int]:
    """alpha, distance, length of the tail; nan, nan, 0 where no cut-off is allowed."""
    best = (NAN, NAN, 0)
    for count in range(fewest, len(eigenvalues) + 1):
        x_min = eigenvalues[count - 1]
        tail = sorted(eigenvalues[:count])
        alpha = 1 + count / sum(math.log(value / x_min) for value in tail)
        below = [1 - (value / x_min) ** (1 - alpha) for value in tail]
        distances = [abs(model - place / count) for place, model in enumerate(below)]
        if two_sided:
            distances += [abs(model - (place + 1) / count) for place, model in enumerate(below)]
        if not best[2] or max(distances) <= best[1]:
            best = (alpha, max(distances), count)
    return best


def bulk(matrix: Array, significant: Array, null: Array | None) -> Row:
    """Marchenko-Pastur measures by integrating the density; `null` are the singular values of the permuted matrix."""
    rows, columns = max(matrix.shape), min(matrix.shape)
    ratio, eigenvalues = columns / rows, significant**2 / rows
    variance = matrix.var()
    if null is not None:
        edge = variance * (1 + math.sqrt(ratio)) ** 2
        variance = max(0.0, variance - sum(value for value in null**2 / rows if value > edge) / columns)
    lower, upper = (variance * (1 + sign * math.sqrt(ratio)) ** 2 for sign in (-1, 1))
    model = [mp_distribution(value, variance, ratio) for value in eigenvalues]
    inside = [place for place, value in enumerate(eigenvalues) if lower <= value <= upper]
    outliers = sum(value > upper for value in eigenvalues)
    roots = math.sqrt(rows - 1), math.sqrt(columns)
    width = sum(roots) * (1 / roots[0] + 1 / roots[1]) ** (1 / 3)
    return {
        "mp_edge": upper,
        "mp_sigma": math.sqrt(variance),
        "mp_outliers": outliers,
        "mp_outlier_share": outliers / columns,
        "mp_ks": step_distance([model[place] for place in inside]),
        "mp_ks_full": step_distance(model),
        "mp_tracy_widom": (eigenvalues[0] * rows / variance - sum(roots) ** 2) / width,
    }


def mp_distribution(eigenvalue: float, variance: float, ratio: float) -> float:
    """The integral of the density up to an eigenvalue, over its root, where the density of square matrices stays finite."""
    lower, upper = (variance * (1 + sign * math.sqrt(ratio)) ** 2 for sign in (-1, 1))

    def density(root: float) -> float:
        inside = max(0.0, (upper - root**2) * (root**2 - lower))
        return math.sqrt(inside) / (math.pi * ratio * variance * root) if root > 0 else 0.0

    stop = min(max(eigenvalue, lower), upper)
    return float(quad(density, math.sqrt(lower), math.sqrt(stop), limit=200)[0])


def step_distance(model: list[float]) -> float:
    """sup |S - F|, both sides of every step of S; F is given at the values, falling."""
    count = len(model)
    distances = [max(abs(value - (count - place - 1) / count), abs(value - (count - place) / count)) for place, value in enumerate(model)]
    return max(distances, default=NAN)


# ---------------------------------------------------------------------------------------------------------------- tails


def tail_row(eigenvalues: list[float]) -> Row:
    """The likelihood ratios of the fitted tail, by numerical optimisation; nan where there is no fit."""
    alpha, _, count = fitted_law(eigenvalues, max(10, math.ceil(len(eigenvalues) / 10)))
    names = ("exponential", "lognormal", "truncated")
    if not count:
        return {f"pl_lr_{name}{end}": NAN for name in names for end in ("", "_p")}
    y = np.log(np.array(eigenvalues[:count]) / eigenvalues[count - 1])
    own = math.log(alpha - 1) - (alpha - 1) * y
    rate = 1 / float(np.expm1(y).mean())
    others = (math.log(rate) + y - rate * np.expm1(y), best_lognormal(y), best_truncated(y))
    found: Row = {}
    for name, terms in zip(names, (own - other for other in others), strict=True):
        ratio = float(terms.sum()) if name != "truncated" else min(0.0, float(terms.sum()))
        spread = math.sqrt(2 * count * terms.var())
        found[f"pl_lr_{name}"] = ratio
        found[f"pl_lr_{name}_p"] = float(erfc(math.sqrt(-ratio))) if name == "truncated" else float(erfc(abs(ratio) / spread))
    return found


def best_lognormal(y: Array) -> Array:
    """log densities of y where it is normal, cut off below 0."""

    def terms(place: Array) -> Array:
        mean, deviation = place[0], math.exp(place[1])
        z = (y - mean) / deviation
        return np.asarray(-(z**2) / 2 - math.log(deviation * math.sqrt(2 * math.pi)) - log_ndtr(mean / deviation))

    starts = [np.array([y.mean() + shift, math.log(width * y.std())]) for shift in (-3.0, 0.0) for width in (1.0, 3.0)]
    return best(terms, starts)


def best_truncated(y: Array) -> Array:
    """log densities of y where lambda is a power law, of exponent 1 at least, times an exponential."""

    def terms(place: Array) -> Array:
        slope, rate = abs(place[0]), abs(place[1])
        whole = quad(lambda x: math.exp(-slope * x - rate * math.expm1(min(x, 500))), 0, np.inf, limit=200)[0]
        return np.asarray(-slope * y - rate * np.expm1(y) - math.log(whole))

    return best(terms, [np.array([slope, rate]) for slope in (0.2, 1.0) for rate in (0.05, 0.5)])


def best(terms: Callable[[Array], Array], starts: list[Array]) -> Array:
    """The terms of the largest sum that simplex searches from these starts find."""
    settings = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000}
    found = [minimize(lambda place: -float(terms(place).sum()), start, method="Nelder-Mead", options=settings) for start in starts]
    return terms(min(found, key=lambda one: float(one.fun)).x)
