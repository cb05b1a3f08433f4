"""Parameters, gradients and statistics of other libraries: their memory is stepped and read where it lies."""

import array

import numpy as np
import pytest

import modelopt_rs as mo
from optimizers import ALL, arrays

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("name", "options"), ALL, ids=str)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_h17_tensors_of_torch_are_stepped_where_they_lie(name, options, clip):
    plain, tensors = (
        arrays(name, 0, np.float32),
        {k: torch.from_numpy(v) for k, v in arrays(name, 0, np.float32).items()},
    )
    optimizers = [getattr(mo.optim, name)(p, lr=0.1, **options) for p in (plain, tensors)]
    for t in range(1, 4):
        grads = arrays(name, t, np.float32)
        if t == 3:  # what is left of it is torch's way, in NumPy
            next(iter(grads.values())).reshape(-1)[0] = np.nan
        with np.errstate(invalid="ignore"):
            optimizers[0].step(grads, clip_norm=clip)
            optimizers[1].step({k: torch.from_numpy(g) for k, g in grads.items()}, clip_norm=clip)
        for k, w in plain.items():
            assert tensors[k].numpy().tobytes() == w.tobytes(), (t, k)
    assert all(optimizers[1].params[k].ctypes.data == tensors[k].data_ptr() for k in tensors)


def test_one_tensor_lists_and_buffers_are_parameters_and_gradients():
    want = np.full(3, 0.5, np.float32)
    for params, grads in (
        (torch.ones(3), torch.ones(3)),
        ([torch.ones(3)], [torch.ones(3)]),
        ([array.array("f", [1, 1, 1])], [memoryview(np.ones(3, np.float32))]),
        ({"w": torch.ones(3)}, {"w": memoryview(np.ones(3, np.float32))}),
    ):
        optimizer = mo.optim.SGD(params, lr=0.25)
        optimizer.step(grads)
        optimizer.accumulate(grads)
        optimizer.step()
        (w,) = optimizer.params.values()
        np.testing.assert_array_equal(w, want)
    with pytest.raises(ValueError, match=r"^SGD: params\['0'\] must not require a gradient, .*detach\(\)"):
        mo.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1)
    with pytest.raises(TypeError, match=r"^SGD: params\['w'\] must be a NumPy array, got MaskedArray; its mask"):
        mo.optim.SGD({"w": np.ma.array(want)}, lr=0.1)


def test_statistics_take_tensors():
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    for kind in (mo.prune.Hessian, mo.prune.ColumnNorms):
        one, other = kind(), kind()
        one.update(x)
        other.update(torch.from_numpy(x))
        assert one.count == other.count == 16
    scales = mo.quant.awq_scales(x, torch.ones(4, dtype=torch.float64), group_size=4)
    np.testing.assert_array_equal(scales, mo.quant.awq_scales(x, np.ones(4), group_size=4))
