"""The search of scales of least squared error, in plain float64: the same candidates, one part after the other."""

import numpy as np

import reference as ref

STORED = {None: None, "float32": np.float32, "float16": np.float16, "bfloat16": ref.BF16}


def grid(bits: int, scheme: str, size: int) -> np.ndarray:
    """Parts of the scale that the plain formula has."""
    short = {
        (8, "symmetric"): (0.97, 1.01, 9),
        (8, "asymmetric"): (0.97, 1.01, 5),
        (4, "symmetric"): (0.88, 1.08, 5),
        (4, "asymmetric"): (0.75, 1.1, 8),
        (2, "symmetric"): (0.35, 1.1, 6),
        (2, "asymmetric"): (0.3, 1.1, 9),
    }
    long = {8: (0.6, 1.01, 12), 4: (0.4, 1.1, 10), 2: (0.15, 1.1, 12)}
    if size <= 4096:
        long[8] = (0.92, 1.01, 10)
    return np.linspace(*(short[bits, scheme] if size <= 64 else long[bits]))


def sides(bits: int, size: int) -> tuple[float, ...]:
    """Where the range lies that is left, of codes that are not symmetric."""
    if bits == 2:
        return 0.25, 0.75
    return (0.5,) if bits == 4 and size <= 64 else (0, 0.5, 1)


def stored(scale: float, dtype: str | None, bits: int) -> float:
    """The scale as it is stored, within what its dtype holds; codes below 8 bits times float16 are exact in float16."""
    if dtype is None:
        return float(np.float32(scale))
    if dtype == "float16" and bits < 8:
        least = np.copysign(np.clip(abs(scale), 2.0**-24, 65504.0 / 16), scale)
        part, exponent = np.frexp(float(np.float32(least)))
        return float(np.float16(np.ldexp(np.rint(part * 128) / 128, exponent)))
    least, most = {"float16": (2.0**-24, 65504.0)}.get(dtype, (2.0**-126, float(ref.finite_values(ref.BF16)[-1])))
    most = float(np.finfo(np.float32).max) if dtype == "float32" else most
    return float(np.float32(ref.cast(np.copysign(np.clip(abs(scale), least, most), scale), np.dtype(STORED[dtype]))))


def candidates(x: np.ndarray, bits: int, scheme: str) -> list[tuple[float, float]]:
    low, high, levels = min(0.0, x.min()), max(0.0, x.max()), 2**bits - 1
    if scheme == "symmetric":
        anchor = max(-low, high) / 2 ** (bits - 1)
        return [(sign * f * anchor, 2 ** (bits - 1)) for f in grid(bits, scheme, x.size) for sign in (1, -1)]
    found = []
    for f in grid(bits, scheme, x.size):
        s, slack = (high - low) / levels * f, (high - low) * (1 - f)
        found += [(s, np.clip(np.rint(-(low + slack * a) / s), 0, levels)) for a in sides(bits, x.size)]
    return found


def plain(x: np.ndarray, bits: int, scheme: str, dtype: str | None) -> tuple[float, float]:
    low, high, levels = min(0.0, x.min()), max(0.0, x.max()), 2**bits - 1
    if scheme == "symmetric":
        return stored(max(-low, high) / (2 ** (bits - 1) - 1), dtype, bits), 2 ** (bits - 1)
    s = stored((high - low) / levels, dtype, bits)
    return s, min(np.rint(-low / s), levels)


def codes(x: np.ndarray, s: float, z: float, bits: int) -> np.ndarray:
    return np.clip(np.rint(x / s), -z, 2**bits - 1 - z)


def error(x: np.ndarray, w: np.ndarray, s: float, z: float, bits: int) -> float:
    return float((w * (x - s * codes(x, s, z, bits)) ** 2).sum())


def least_error(x: np.ndarray, bits: int, scheme: str, dtype: str | None = None, w: np.ndarray | None = None) -> float:
    """The error that the search leaves of one part."""
    x = x.astype(np.float64)
    w = np.ones(x.size) if w is None else w.astype(np.float64)
    errors = [error(x, w, *plain(x, bits, scheme, dtype), bits)]
    if not x.any():
        return 0.0

    def refit(s: float, z: float) -> tuple[float, float, float]:
        """The best scale for the codes of `s`, and the error that it leaves."""
        q = codes(x, s, z, bits)
        qq = (w * q * q).sum()
        s = (w * x * q).sum() / qq if qq else s
        return float((w * (x - s * q) ** 2).sum()), s, z

    _, s, z = min((refit(s, z) for s, z in candidates(x, bits, scheme)), key=lambda found: found[0])
    for _ in range(3 if bits == 8 else 2):
        s = stored(s, dtype, bits)
        errors.append(error(x, w, s, z, bits))
        s = refit(s, z)[1]
    return min(errors)


def least_error_with_offset(x: np.ndarray, bits: int, w: np.ndarray) -> float:
    """The error that the search of scale and offset leaves of one part."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    low, high, levels = x.min(), x.max(), 2**bits - 1

    def codes(s: float, o: float) -> np.ndarray:
        return np.clip(np.rint((x - o) / s), 0, levels)

    def error(s: float, o: float) -> float:
        return float((w * (x - o - s * codes(s, o)) ** 2).sum())

    def refit(s: float, o: float) -> tuple[float, float, float]:
        """The best scale and offset for the codes of these, and the error that they leave."""
        q = codes(s, o)
        if np.ptp(q[w > 0]) == 0:
            return error(s, o), s, o
        mean_x, mean_q = np.average(x, weights=w), np.average(q, weights=w)
        s = (w * (x - mean_x) * (q - mean_q)).sum() / (w * (q - mean_q) ** 2).sum()
        o = mean_x - s * mean_q
        return float((w * (x - o - s * q) ** 2).sum()), s, o

    starts = [
        ((high - low) / levels * f, low + (high - low) * (1 - f) * a)
        for f in grid(bits, "asymmetric", x.size)
        for a in sides(bits, x.size)
    ]
    errors = [error((high - low) / levels, low)]
    _, s, o = min((refit(*start) for start in starts), key=lambda found: found[0])
    for _ in range(4):
        errors.append(error(s, o))
        _, s, o = refit(s, o)
    return min(errors)


def norm_error(
    x: np.ndarray, bits: int, scheme: str, norm: float, dtype: str | None = None, w: np.ndarray | None = None
) -> float:
    """The sum of errors to a power that the search leaves: least squares, each times |d| to the power norm - 2."""
    x = x.astype(np.float64)
    w = np.ones(x.size) if w is None else w.astype(np.float64)

    def missed(s: float, z: float) -> np.ndarray:
        return np.maximum(np.abs(x / s - codes(x, s, z, bits)), 1 / 1024)

    def of(s: float, z: float) -> float:
        """With what is hardly missed as the search counts it."""
        d = x / s - codes(x, s, z, bits)
        return float(abs(s) ** norm * (w * d**2 * missed(s, z) ** (norm - 2)).sum())

    def refit(s: float, z: float) -> float:
        q, more = codes(x, s, z, bits), w * missed(s, z) ** (norm - 2)
        qq = (more * q * q).sum()
        return (more * x * q).sum() / qq if qq else s

    tried = [plain(x, bits, scheme, dtype)]
    s, z = min(candidates(x, bits, scheme), key=lambda each: of(*each))
    for _ in range(3 if bits == 8 else 2):
        s = stored(refit(s, z), dtype, bits)
        tried.append((s, z))
    return min(of(*each) for each in tried)
