"""GPTQ in float64, a column at a time: Frantar et al. 2022, arXiv 2210.17323, algorithm 1."""

from typing import Any

import numpy as np

import modelopt_rs as mo
import reference as ref


def limits(bits: int, scheme: str, zero_point: int) -> tuple[int, int]:
    """Of symmetric codes the lowest is used: corrections move weights out of the range."""
    top = 2 ** (bits - 1)
    return (-top, top - 1) if scheme == "symmetric" else (-zero_point, 2 * top - 1 - zero_point)


def parameters(
    x: np.ndarray, bits: int, scheme: str, how: dict[str, Any], weights: np.ndarray | None
) -> tuple[float, int, float]:
    """Scale, zero point and offset of one part; searched by `quantize`, which has its own oracle."""
    if how:
        weights = weights.astype(np.float32) if how.get("search") and weights is not None else None
        found = mo.quantize(x[None], bits=bits, scheme=scheme, group_size=len(x), weights=weights, **how)
        return float(found.scale[0, 0]), 0 if found.zero_point is None else int(found.zero_point[0, 0]), 0.0
    plain = ref.quantize(x, bits, scheme)
    zero_point = 0 if plain.zero_point is None else int(plain.zero_point[()])
    return float(plain.scale), zero_point, 0.0 if plain.offset is None else float(plain.offset)


def order_of(h: np.ndarray, act_order: Any, group_size: int | None) -> np.ndarray:
    """Which column is rounded when."""
    n = len(h)
    if not act_order:
        return np.arange(n)
    order = np.argsort(-h.diagonal(), kind="stable")
    if act_order == "groups" and group_size is not None:
        first: dict[int, int] = {}
        for place, column in enumerate(order):
            first.setdefault(int(column) // group_size, place)
        order = np.array(sorted(order, key=lambda column: first[int(column) // group_size]))
    return order


def gptq(
    w: np.ndarray,
    h: np.ndarray,
    *,
    bits: int = 4,
    scheme: str = "symmetric",
    axis: int | None = None,
    group_size: int | None = None,
    act_order: Any = False,
    static_groups: bool = False,
    damp: float = 0.01,
    **how: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (signed, or less their zero points) and the numbers that they stand for."""
    w, h = w.astype(np.float64), h.copy()
    rows, n = w.shape
    dead = h.diagonal() == 0
    order = order_of(h, act_order, group_size)
    h[dead, dead] = 1
    h += damp * h.diagonal().mean() * np.eye(n)
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    counts = np.zeros(n)
    counts[order] = (upper.diagonal().min() / upper.diagonal()) ** 2
    found: dict[tuple[int, int], tuple[float, int, float]] = {}

    def find(columns: np.ndarray, part: int) -> None:
        weights = None if (counts == 1).all() else counts[columns]
        for i in range(rows):
            found[i, part] = parameters(w[i, columns], bits, scheme, how, weights)

    def part_of(column: int) -> int:
        return 0 if group_size is None else column // group_size

    all_parts = {part_of(j): np.array([k for k in range(n) if part_of(k) == part_of(j)]) for j in range(n)}
    if axis is None and group_size is None:
        whole = parameters(w.ravel(), bits, scheme, how, None)
        found.update({(i, 0): whole for i in range(rows)})
    elif static_groups or axis is not None:
        for part, columns in all_parts.items():
            find(columns, part)
    codes, numbers = np.zeros(w.shape, int), np.zeros(w.shape)
    for place, j in enumerate(order):
        part = part_of(j)
        if (0, part) not in found and rows:
            find(np.array([k for k in order if part_of(k) == part]), part)
        for i in range(rows):
            scale, zero_point, offset = found[i, part]
            low, high = limits(bits, scheme, zero_point)
            codes[i, j] = np.clip(np.rint((w[i, j] - offset) / scale), low, high)
            numbers[i, j] = codes[i, j] * scale + offset
        error = (w[:, j] - numbers[:, j]) / upper[place, place]
        w[:, order[place:]] -= np.outer(error, upper[place, place:])
    return codes, numbers
