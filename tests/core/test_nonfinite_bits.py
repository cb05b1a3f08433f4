"""NaN is one number of bits, whatever instruction set made it (H41): infinities and NaN go into everything."""

import itertools
from typing import Any

import numpy as np
import pytest

import modelopt_rs as mo
import reference as ref
from modelopt_rs import _core
from optimizers import ALL, CODED, arrays

CALLS = ref.calls(mo) | ref.steps(mo)


def outcome(call: ref.Call, x: np.ndarray, threads: int) -> Any:
    try:
        with np.errstate(all="ignore"):
            return ref.bits_of(call.run(call.prepare(x), threads))
    except ValueError as error:
        return str(error)


def poisoned(x: np.ndarray, seed: int) -> np.ndarray:
    """Every third number is not finite: NaN of either sign, or an infinity, or so large that its square is."""
    rng = np.random.default_rng(seed)
    flat = x.copy().reshape(-1)
    with np.errstate(over="ignore"):
        bad = np.array([np.nan, -np.nan, np.inf, -np.inf, 1e38, -1e38]).astype(x.dtype)
    places = rng.random(flat.size) < 0.33
    flat[places] = rng.choice(bad, int(places.sum()))
    return flat.reshape(x.shape)


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if not call.codes])
def test_h41_what_is_made_of_nan_and_infinities_has_the_same_bits(name, isas):
    call = CALLS[name]
    for dtype, n in itertools.product(ref.DTYPES, (1, 7, 64, 1000)):
        x = poisoned(ref.wild(n, dtype), n)
        _core.set_isa("portable")
        want = outcome(call, x, 1)
        for isa in isas:
            _core.set_isa(isa)
            assert outcome(call, x, 2) == want, (isa, dtype, n)


def stepped(name: str, options: dict[str, Any], dtype: Any, where: str) -> Any:
    params = arrays(name, 0, dtype)
    optimizer = getattr(mo.optim, name)(params, lr=0.1, ema_decay=0.5, **options)
    for t in range(3):
        grads = arrays(name, t + 1, dtype)
        if where == "grads" and t == 1:
            grads = {k: poisoned(g, t) for k, g in grads.items()}
        if where == "one":
            grads["a"].reshape(-1)[t] = np.inf if t % 2 else -np.inf
        if where == "params" and t == 1:
            for p in params.values():
                p[...] = poisoned(p, t)
        with np.errstate(all="ignore"):
            optimizer.step(grads, clip_value=None if t else 1e30)
    states = [
        (x.codes.tobytes(), x.absmax.tobytes()) if isinstance(x, mo.optim.BlockState) else np.asarray(x).tobytes()
        for state in optimizer.state
        for x in state.values()
    ]
    return [p.tobytes() for p in params.values()], [x.tobytes() for x in optimizer.averages.values()], states


@pytest.mark.parametrize(("name", "options"), [*ALL, *CODED], ids=str)
def test_h41_steps_of_nan_and_infinities_have_the_same_bits(name, options, isas):
    dtypes = [d for d in ref.DTYPES if not (options.get("state_bits") and d == np.float64)]  # it has none in blocks
    for dtype, where in itertools.product(dtypes, ("grads", "one", "params")):
        _core.set_isa("portable")
        want = stepped(name, options, dtype, where)
        for isa in isas[1:]:
            _core.set_isa(isa)
            assert stepped(name, options, dtype, where) == want, (isa, dtype, where)
