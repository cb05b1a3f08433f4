"""The compiled kernels. Private: the public face is `modelopt_rs.reduce`, `modelopt_rs.quant` and the rest.

Every function checks all of its arguments before it writes anything, releases the GIL while it computes,
and gives the same bits for every `threads` and every instruction set. `x` is any array of float32, float64,
float16 or bfloat16 (`ml_dtypes`), or uint16 with `dtype="bf16"`.
"""

from collections.abc import Sequence
from typing import Any, Final, Self, final

import numpy as np
from numpy.typing import NDArray

from modelopt_rs._types import (
    AdafactorCall,
    Array,
    Axis,
    Bf16,
    OptimCall,
    Parts,
    PruneCall,
    Spec,
    StepNonfinite,
)
from modelopt_rs.optim.state import BlockState

__all__ = [
    "FormatError",
    "ImagePlan",
    "InternalError",
    "LimitError",
    "SafetensorsHeader",
    "Table",
    "TensorExchange",
    "UnsupportedError",
    "__version__",
    "absmax",
    "adafactor_step",
    "all",
    "allclose",
    "any",
    "apply_cut",
    "apply_mask",
    "argmax",
    "argmin",
    "awq_scales",
    "block_state",
    "check_options",
    "compress",
    "compress_groups",
    "count_magnitudes",
    "count_nonfinite",
    "count_nonzero",
    "decompress",
    "decompress_groups",
    "dequantize",
    "dequantize_linear",
    "dlpack_array",
    "dlpack_retype",
    "error_stats",
    "fake_quantize",
    "fake_quantize_given",
    "find_scales",
    "get_num_threads",
    "global_magnitude",
    "gptq",
    "histogram",
    "importance_axis",
    "isa",
    "kth_magnitude",
    "linear_columns",
    "linear_packed",
    "linear_rows",
    "magnitude",
    "max",
    "mean",
    "min",
    "minmax",
    "n_of_m",
    "norm",
    "norms",
    "optim_step",
    "optimizer_step",
    "pack",
    "packed_shape",
    "prepack",
    "quantile",
    "quantize",
    "quantize_columns",
    "quantize_given",
    "quantize_linear",
    "quantize_units",
    "quantized_shapes",
    "requantize_linear",
    "row_offsets",
    "set_fault",
    "set_isa",
    "set_num_threads",
    "sign_bits",
    "slice_distances",
    "sparsegpt",
    "specification",
    "sum",
    "swap_thread_override",
    "take",
    "taylor_sums",
    "tensors_step",
    "threshold",
    "top_places",
    "unpack",
    "var",
    "wanda",
]

__version__: Final[str]

class FormatError(ValueError): ...
class LimitError(FormatError): ...
class UnsupportedError(FormatError): ...
class InternalError(RuntimeError): ...

# Reductions: one value for `axis=None`, else an array.
def minmax(x: Any, axis: Axis, keepdims: bool, nan: str, dtype: Bf16, threads: int | None) -> tuple[Any, Any]: ...
def min(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def max(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def argmin(x: Any, axis: int | None, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def argmax(x: Any, axis: int | None, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def any(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def all(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def top_places(x: Any, k: int, largest: bool, dtype: Bf16, threads: int | None) -> NDArray[np.int64]:
    """Give the places of the k largest or smallest along the last axis, best first."""

def allclose(a: Any, b: Any, tolerances: tuple[float, float, bool], dtype: Bf16, threads: int | None) -> bool: ...
def absmax(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def sum(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def mean(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def var(x: Any, axis: Axis, keepdims: bool, ddof: float, dtype: Bf16, threads: int | None) -> Any: ...
def norms(arrays: list[Array], dtype: Bf16, threads: int | None) -> list[float]:
    """Give the 2-norm of each."""

def norm(x: Any, axis: Axis, keepdims: bool, ord: float, dtype: Bf16, threads: int | None) -> Any: ...
def count_nonzero(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def count_nonfinite(x: Any, axis: Axis, keepdims: bool, dtype: Bf16, threads: int | None) -> Any: ...
def histogram(
    x: Any, bins: int, range: tuple[float, float] | None, dtype: Bf16, threads: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
def quantile(x: Any, q: NDArray[np.float64], dtype: Bf16, threads: int | None) -> NDArray[np.float64]: ...
def kth_magnitude(x: Any, k: int, dtype: Bf16, threads: int | None) -> Any: ...
def error_stats(x: Any, y: Any, dtype: Bf16, threads: int | None) -> tuple[float, float, float, float, float]:
    """(sum x², sum y², sum x·y, sum (x-y)², max |x-y|) of two arrays of one shape, summed in float64."""

# Pruning. What is written: the weights, or a mask as bytes (1: stays). nan "raise-first": before the first write.
def threshold(w: Any, eps: float, out: Array, options: PruneCall) -> None: ...
def magnitude(w: Any, sparsity: float, axis: Axis, out: Array, options: PruneCall) -> None: ...
def global_magnitude(arrays: Any, sparsity: float, out: Any, options: PruneCall) -> None: ...
def n_of_m(w: Any, keep: int, group: int, axis: int, out: Array, options: PruneCall) -> None: ...
def wanda(
    w: Any, x_norm: Any, share: tuple[float | None, tuple[int, int] | None], out: Array, options: PruneCall
) -> None: ...
def sparsegpt(
    w: Any,
    hessian: Any,
    share: tuple[float | None, tuple[int, int] | None],
    how: tuple[float, int],
    out: Array,
    options: PruneCall,
) -> None:
    """`how`: damping and block."""

def apply_mask(w: Any, mask: Any, out: Array, options: PruneCall) -> None: ...

# Pruning of pieces. `digit`: bits of a key (those of a wider float than w's where dtypes are mixed), the bits above the
# digit, how many are below it, its own. `cut`: bits of a key, the key below which weights go, how many equal ones go.
def count_magnitudes(
    w: Any, digit: tuple[int, int, int, int], counts: NDArray[np.int64], options: PruneCall
) -> None: ...
def apply_cut(w: Array, cut: tuple[int, int, int], dtype: Bf16, threads: int | None) -> int:
    """In place; return how many of the equal ones went."""

# Storage of pruned arrays: (row_offsets, values, bitmask, or None and columns); (values, places, keep, group).
def row_offsets(w: Any, csr: bool, dtype: Bf16, threads: int | None) -> NDArray[np.int64]: ...
def compress(
    w: Any, out: tuple[Array, Array, Array | None, Array | None], dtype: Bf16, threads: int | None
) -> None: ...
def decompress(parts: tuple[Array, Array, Array], out: Array, dtype: Bf16, threads: int | None) -> None: ...
def compress_groups(w: Any, out: tuple[Array, Array, int, int], dtype: Bf16, threads: int | None) -> None: ...
def decompress_groups(parts: tuple[Array, Array, int, int], out: Array, dtype: Bf16, threads: int | None) -> None: ...

# Cropping.
def importance_axis(arg: str, w: Any, axis: int, size: int, dtype: Bf16, threads: int | None) -> int:
    """Check an array that `importance` was given; its axis, counted from the front."""

def taylor_sums(
    w: Any, grad: Any, axis: int, dtype: Bf16, threads: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sum g w, sum (g w)²) of each slice."""

def slice_distances(w: Any, dtype: Bf16, threads: int | None) -> NDArray[np.float64]:
    """The sum of the Euclidean distances of each slice of the first axis to all slices."""

def take(x: Array, indices: NDArray[np.int64], axis: int, out: Array, threads: int | None) -> None:
    """Gather slices of an array of unsigned integers."""

# Quantization, in every format. `global_scale` is a float32 of shape (), where the format has one. For files only are
# "uint8b128", "uint4b8" and "uint2b2" (vLLM's names): a symmetric code q stored as the unsigned q + 2^(bits-1).
def quantized_shapes(
    shape: tuple[int, ...], spec: Spec, function: str = "quantize"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of codes and of scales; an error where the specification does not fit the shape."""

def quantize(
    x: Any, out: Parts, spec: Spec, nonfinite: str, absmax: float | None, dtype: Bf16, threads: int | None
) -> None:
    """`absmax`: at least the largest magnitude of an array that `x` is a part of, where a scale depends on it."""

def find_scales(
    x: Any,
    weights: Array | None,
    out: tuple[Array, Array | None],
    spec: Spec,
    how: tuple[str, str | float | None, str | None],
    dtype: Bf16,
    threads: int | None,
) -> None:
    """Write scale, and zero point or offset.

    `how`: the function that asks; "mse", a norm or None; what scales are rounded to.
    Of an axis only the first. What is not finite counts as 0.
    """

def quantize_given(
    x: Any,
    codes: Array,
    scales: tuple[Array, Array | None],
    spec: Spec,
    nonfinite: str,
    dtype: Bf16,
    threads: int | None,
) -> None:
    """Write codes for these scales, and zero points or offsets."""

def fake_quantize_given(
    x: Any,
    out: Array,
    scales: tuple[Array, Array | None],
    spec: Spec,
    nonfinite: str,
    dtype: Bf16,
    threads: int | None,
) -> None:
    """Write the numbers that such codes stand for."""

def dequantize(parts: Parts, spec: Spec, out: Array, dtype: Bf16, threads: int | None) -> None: ...
def fake_quantize(x: Any, out: Array, spec: Spec, nonfinite: str, dtype: Bf16, threads: int | None) -> None: ...
def gptq(
    w: Any,
    hessian: Any,
    out: Parts,
    spec: Spec,
    how: tuple[str | float | None, str | None],
    pass_: tuple[bool | str, bool, float, int],
    options: tuple[Bf16, int | None],
) -> None:
    """`how`: "mse", a norm or None, the dtype that scales are rounded to; `pass_`: act_order, static_groups, damp,
    block_size; `options`: dtype, threads.
    """

# Codes with given scales. `params`: scale and zero point, numbers or arrays (int64); `place`: the name of the dtype of
# the codes, axis, block_size; `how`: rounding and nonfinite.
def quantize_linear(
    x: Any,
    out: Array,
    params: tuple[Any, Any],
    place: tuple[str, int | None, int | None],
    how: tuple[str, str],
    threads: int | None,
) -> None: ...
def dequantize_linear(
    q: Array,
    out: Array,
    params: tuple[Any, Any],
    place: tuple[str, int | None, int | None],
    dtype: Bf16,
    threads: int | None,
) -> None: ...
def requantize_linear(
    arrays: tuple[Array, Array],
    params: tuple[Any, Any],
    to: tuple[Any, Any],
    place: tuple[str, int | None, int | None],
    how: tuple[str, str],
    threads: int | None,
) -> None:
    """`arrays`: (q, out); `how`: the name of the dtype of `out`, and rounding."""

@final
class Table:
    """A table of codes that was checked once, to look rows up in."""

    def __new__(cls, given: tuple[Any, ...]) -> Table: ...
    def take(
        self,
        given: tuple[Any, ...],
        indices: int | NDArray[np.int64] | NDArray[np.int32],
        out: Array | None,
        dtype: Bf16,
        threads: int | None,
    ) -> Array | None:
        """Rows, in `out` or in a new array of float32; None where the table is no longer what it was made of."""

# Products with quantized weights: parts, spec and shape of the weights, or their panels. `how`: int8, int24 or float32.
def linear_rows(
    x: Array,
    w: tuple[Parts, Spec, tuple[int, ...]],
    bias: Array | None,
    out: Array,
    how: str,
    threads: int | None,
) -> None:
    """Write x @ w.T + bias, of weights as quantization makes them."""

def linear_packed(
    x: Array,
    w: tuple[Array, Spec, tuple[int, ...]],
    bias: Array | None,
    out: Array,
    how: str,
    threads: int | None,
) -> None:
    """The same of panels."""

def linear_columns(x: Array, w: tuple[Parts, Spec, tuple[int, ...]], out: Array, threads: int | None) -> None:
    """Write x @ w."""

def packed_shape(spec: Spec, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of panels: how many, and bytes of one."""

def prepack(w: tuple[Parts, Spec, tuple[int, ...]], out: Array, threads: int | None) -> None:
    """Write panels: uint8, as `packed_shape` says."""

# Vectors of a search index: floor(limited((x - start) / step, 0, top) * 255 / top) ^ flip; rows in units of their norm;
# signs, the first in the highest bit.
def quantize_columns(
    x: Any, columns: tuple[Array, Array], top: int, flip: int, out: Array, threads: int | None
) -> None: ...
def quantize_units(x: Any, out: Array, threads: int | None) -> None: ...
def sign_bits(x: Any, flip: int, out: Array, threads: int | None) -> None: ...

# Arrays of other libraries.
def dlpack_array(capsule: Any, writeable: bool) -> tuple[Array, int, int] | None:
    """The array of a capsule and the code and bits of its numbers; None where it can't be one."""

def dlpack_retype(capsule: Any, code: int, bits: int) -> bool:
    """Change the kind of numbers of a new capsule; False where its version can't say so."""

def awq_scales(
    w: Any,
    inputs: tuple[NDArray[np.float64], NDArray[np.float64]],
    out: Array,
    spec: Spec,
    how: tuple[str | float | None, str | None],
    grid: int,
    options: tuple[Bf16, int | None],
) -> list[float]:
    """Write the factors; the error of each exponent. `inputs`: magnitudes, and what squared errors count."""

# Packing.
def pack(codes: Array, bits: int, out: Array, threads: int | None) -> None: ...
def unpack(packed: Array, bits: int, n: int, out: Array, threads: int | None) -> None: ...

# Threads and instruction set.
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def swap_thread_override(n: int | None) -> int | None:
    """Set this thread's own default (None: none) and return the one it replaces."""

def isa() -> str:
    """The instruction set in use: 'portable', 'avx2' or 'avx512'."""

def set_isa(name: str) -> None:
    """Choose the instruction set (tests); ValueError if the CPU lacks it."""

def set_fault(on: bool) -> None:
    """While on, every entry point panics (tests that a panic becomes InternalError)."""

# Optimizers.
def optim_step(calls: list[OptimCall], nonfinite: StepNonfinite, dtype: str | None, threads: int | None) -> list[float]:
    """Check all calls, then step them in place, one after the other; what `nadam_step` returns, else 0, for each."""

def optimizer_step(
    function: str,
    groups: list[tuple[dict[str, Any], int]],
    given: tuple[list[Array], Sequence[Array | None], list[dict[str, Any]], list[Array | None] | None],
    how: tuple[float, float | None, str, tuple[float, ...] | None],
    dtype: str | None,
    threads: int | None,
) -> bool:
    """Check all, step in place what has a gradient, and count the steps in the states; False where they were skipped.

    `groups`: the options of each and of how many parameters it is; `given`: (params, grads, states, bits of
    masks or None) in their order; `how`: (grad_scale, clip_value, nonfinite, learning rates or None: the options").
    """

def check_options(function: str, options: dict[str, Any]) -> None:
    """Refuse options that a first step would refuse."""

def specification(
    function: str,
) -> tuple[tuple[str, ...], tuple[tuple[str, bool, str | None], ...], tuple[int, tuple[int, ...]]]:
    """Give the options that are its numbers; (name, can be negative, option that asks for it) of each state; (number
    of states, bits) that may be in blocks.
    """

@final
class ImagePlan:
    """What `modelopt_rs.preprocess.Image` goes by."""

    def __new__(
        cls,
        layout: tuple[tuple[int, int] | None, str, str, bool, bool],
        steps: tuple[float, list[float], list[float], float],
        channels: int | None,
        output: tuple[str, tuple[float, int, int, int, bool] | None],
    ) -> ImagePlan:
        """Of (size, resize, interpolation, apart, swapped), (scale, mean, std, pad), channels, (dtype, codes)."""

    def geometry(self, rows: int, columns: int) -> tuple[int, int, int, int]:
        """Give rows and columns of the resized image, rows above and columns left of it."""

    def shape(self, images: Any) -> list[int]:
        """Give the shape of the output."""

    def run(self, images: Any, out: Array, threads: int | None) -> None: ...

@final
class TensorExchange:
    """Tensors of torch by DLPack's exchange of descriptions, much faster than by objects.

    ValueError where this torch doesn't have it.
    """

    def __new__(cls, kind: type, bf16: np.dtype[Any]) -> Self:
        """For tensors of exactly this type; `bf16` is what its bfloat16 becomes."""
    def trace(self, params: list[Any], states: dict[Any, Any]) -> bytes | None:
        """Give which parameters these are, their states, where both lie and how, as long as all are held.

        None where one has no memory or no state.
        """
    def is_at(self, trace: bytes, params: list[Any], states: dict[Any, Any]) -> bool:
        """Say whether `trace` would give the same."""
    def arrays(self, tensors: list[Any]) -> list[Array] | None:
        """Give arrays that can be read; None where one is no dense tensor of floats on a CPU."""

def tensors_step(
    exchange: TensorExchange,
    function: str,
    groups: list[tuple[dict[str, Any], int]],
    names: list[list[str]],
    given: tuple[list[Any], list[Any], dict[Any, Any]],
    grad_scale: float,
    threads: int | None,
) -> bool:
    """Step tensors of torch. `names`: those of each group's states; `given`: (params, grads, states).

    False where one does not lie plainly or has no state: then nothing was changed.
    """

def block_state(function: str, state: BlockState, array: Array, store: bool, threads: int | None) -> None:
    """Write the numbers of a state in blocks to `array`, or (`store`) code `array` as the state."""

def adafactor_step(
    calls: list[AdafactorCall],
    nonfinite: StepNonfinite,
    dtype: str | None,
    threads: int | None,
) -> None:
    """Check all calls, then step one after the other in place."""

# Files.
@final
class SafetensorsHeader:
    """A checked header: its tensors in the order of the data.

    FormatError where it is malformed; messages are without the file's name: the caller puts it in front.
    Checks everything: duplicate names and keys, depth, known dtypes, shape x item size = extent without
    overflow, exact cover of `data_len` bytes.
    """

    def __new__(cls, header: bytes, data_len: int, max_tensors: int) -> Self: ...
    def __len__(self) -> int: ...
    def find(self, name: str) -> int | None:
        """The place of a tensor."""
    def name(self, i: int) -> str: ...
    def tensor(self, i: int) -> tuple[str, tuple[int, ...], int, int]:
        """(dtype, shape, begin, end) of a tensor; its bytes are counted from the end of the header."""
    def metadata(self) -> dict[str, str]: ...
