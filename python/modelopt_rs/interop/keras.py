"""Training loops over Keras 3 variables with the optimizers of `modelopt_rs.optim`.

What Keras does not allow: these can't be given to ``model.compile(optimizer=...)``, which takes subclasses of
`keras.optimizers.Optimizer` only. Nor would a subclass do: ``fit`` on JAX compiles its step (without
``run_eagerly=True``), and while it is traced there are no numbers that NumPy could read. So gradients are computed in a
loop of one's own and given to `Optimizer.apply`. With the torch backend, which runs eagerly, that may also be done by
the ``train_step`` of a model, with ``compile(optimizer=None, ...)``: then ``fit`` works.

Tested with torch and JAX.
"""

from collections.abc import Iterable, Sequence
from typing import Any

try:
    import keras
except ModuleNotFoundError as error:
    what = 'interop.keras: keras must be installed; pip install "modelopt_rs[keras]"'
    raise ModuleNotFoundError(what, name=error.name) from error

import ml_dtypes
import numpy as np

from modelopt_rs import optim
from modelopt_rs._types import Array
from modelopt_rs.signatures import show_options

__all__ = ["Optimizer"]


class Optimizer:
    """Keras variables, stepped by one of the optimizers of `modelopt_rs.optim`.

    With the torch backend the variables' memory is stepped in place. The arrays of other backends can't be written:
    NumPy arrays are stepped and given to the variables, which is one copy.

    Parameters
    ----------
    algorithm : type
        A class of `modelopt_rs.optim`, as `modelopt_rs.optim.AdamW`.
    variables : iterable of keras.Variable
        What is trained, as ``model.trainable_variables``.
    **options
        What `algorithm` takes besides its parameters.

    Attributes
    ----------
    optimizer : modelopt_rs.optim.Optimizer
        It has `param_groups`, `state`, `state_dict`, `load_state_dict`, `save` and `load`.

    Examples
    --------
    With the JAX backend::

        optimizer = Optimizer(mo.optim.AdamW, model.trainable_variables, lr=1e-3)
        loss_and_grads = jax.jit(jax.value_and_grad(loss_of))  # by model.stateless_call
        for x, y in batches:
            loss, grads = loss_and_grads([v.value for v in model.trainable_variables], x, y)
            optimizer.apply(grads)
    """

    def __init__(self, algorithm: type[optim.Optimizer], variables: Iterable[Any], **options: Any) -> None:
        self._variables = list(variables)
        self._shared = keras.backend.backend() == "torch"
        self._arrays = [_array(v.value) if self._shared else np.array(v.value) for v in self._variables]
        self._seen = [v.value for v in self._variables]
        make: Any = algorithm
        self.optimizer: optim.Optimizer = make(self._arrays, **options)

    def apply(self, grads: Sequence[Any], **how: Any) -> optim.StepResult:
        """Step all variables that have a gradient.

        Parameters
        ----------
        grads : sequence of array or None
            In the order of the variables: what the backend computed, or anything that `numpy.asarray` reads.
        **how
            What `modelopt_rs.optim.Optimizer.step` takes by keyword: `clip_norm`, `clip_value`, `grad_scale`,
            `nonfinite`.

        Returns
        -------
        modelopt_rs.optim.StepResult
            Whether variables were stepped, the norm of gradients and the learning rates.

        Raises
        ------
        TypeError, ValueError
            As for `modelopt_rs.optim.Optimizer.step`; then nothing was changed.
        """
        for i, (variable, array) in enumerate(zip(self._variables, self._arrays, strict=True)):
            if self._shared:
                if variable.value.data_ptr() != array.ctypes.data and array.size:
                    raise ValueError(
                        f"Optimizer.apply: variables[{i}] must stay in its memory, got another; make an Optimizer anew"
                    )
            elif keras.backend.backend() != "jax" or variable.value is not self._seen[i]:
                # It may have been assigned. What JAX holds is another object then.
                np.copyto(array, np.asarray(variable.value))
        given = [None if g is None else _array(g) for g in grads]
        result = self.optimizer.step(given, **how)
        if not result.stepped:
            return result
        stepped = [i for i, g in enumerate(given) if g is not None]
        if self._shared:
            import torch

            for i in stepped:
                torch.autograd.graph.increment_version(self._variables[i].value)
        else:
            for i in stepped:
                # JAX may keep the memory that it is given, as numbers that never change: not that of `array`.
                self._variables[i].assign(self._arrays[i].copy())
                self._seen[i] = self._variables[i].value
        return result


def _array(x: Any) -> Array:
    """A tensor of any backend as a NumPy array, without a copy where its memory can be read."""
    if keras.backend.backend() == "torch" and keras.ops.is_tensor(x):
        x = x.detach()
        if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
            import torch

            return np.asarray(x.view(torch.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(x)


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
