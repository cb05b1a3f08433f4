"""Graphs put together at random: whatever is found can be cropped, and the result is what zeros would give."""

import pytest

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from hypothesis import given, settings
from hypothesis import strategies as st

from graph_nets import Net, crops

POINTWISE = ("Relu", "Tanh", "Sigmoid", "Identity", "Erf", "Neg")


class Random(Net):
    """Grows a graph of matrices (4, width) from a stream of choices."""

    def grow(self, draw, steps):
        values = [("x", 6)]
        for _ in range(steps):
            step = draw(st.sampled_from([name for name in dir(self) if name.startswith("do_")]))
            name, width = draw(st.sampled_from(values))
            made = getattr(self, step)(draw, name, width, values)
            if made is not None:
                values.append(made)
        ends = [self.add("MatMul", name, self.new(width, 3)) for name, width in values[-3:]]
        self.add("Sum", *ends, out="y")

    def new(self, *shape):
        return self.w(f"w{len(self.weights)}", *shape)

    def const(self, *numbers):
        return self.ints(f"i{len(self.weights)}", *numbers)

    def do_matmul(self, draw, name, width, values):
        n = draw(st.sampled_from([4, 6, 8, 12]))
        return self.add("MatMul", name, self.new(width, n)), n

    def do_gemm(self, draw, name, width, values):
        n, trans = draw(st.sampled_from([4, 6, 12])), draw(st.integers(0, 1))
        shape = (n, width) if trans else (width, n)
        return self.add("Gemm", name, self.new(*shape), self.new(n), transB=trans), n

    def do_pointwise(self, draw, name, width, values):
        return self.add(draw(st.sampled_from(POINTWISE)), name), width

    def do_bias(self, draw, name, width, values):
        shape = draw(st.sampled_from([(width,), (1, width), (4, 1), ()]))
        return self.add(draw(st.sampled_from(["Add", "Mul", "Sub"])), name, self.new(*shape)), width

    def do_merge(self, draw, name, width, values):
        same = [other for other, n in values if n == width]
        return self.add(draw(st.sampled_from(["Add", "Mul", "Max"])), name, draw(st.sampled_from(same))), width

    def do_concat(self, draw, name, width, values):
        other, n = draw(st.sampled_from(values))
        return (self.add("Concat", name, other, axis=1), width + n) if width + n <= 24 else None

    def do_split(self, draw, name, width, values):
        if width % 2:
            return None
        half = width // 2
        parts = [f"{name}_{len(self.nodes)}_{side}" for side in "lr"]
        self.add("Split", name, self.const(half, half), out=parts, axis=1)
        values.append((parts[1], half))
        return parts[0], half

    def do_slice(self, draw, name, width, values):
        if width < 2:
            return None
        start = draw(st.integers(0, width - 2))
        end = draw(st.integers(start + 1, width))
        return self.add("Slice", name, self.const(start), self.const(end), self.const(1)), end - start

    def do_heads(self, draw, name, width, values):
        d = draw(st.sampled_from([2, 3]))
        if width % d or width == d:
            return None
        h = self.add("Reshape", name, self.const(4, width // d, d))
        if draw(st.booleans()):
            h = self.add("Softmax", h, axis=-1)
        order = draw(st.sampled_from([[0, 1, 2], [0, 2, 1]]))
        h = self.add("Transpose", h, perm=order)
        return self.add("Reshape", h, self.const(0, -1)), width

    def do_softmax(self, draw, name, width, values):
        return self.add("Softmax", name, axis=draw(st.integers(0, 1))), width

    def do_transposed(self, draw, name, width, values):
        h = self.add("Transpose", name, perm=[1, 0])
        h = self.add("Transpose", self.add("MatMul", self.new(width, width), h), perm=[1, 0])
        return h, width

    def do_grouped(self, draw, name, width, values):
        if width % 2:
            return None
        h = self.add("Unsqueeze", name, self.const(2))
        h = self.add("Conv", h, self.new(width, width // 2, 1), self.new(width), group=2)
        return self.add("Squeeze", h, self.const(2)), width

    def do_shared(self, draw, name, width, values):
        known = [w for w, array in self.weights.items() if array.ndim == 2 and array.shape[0] == width]
        if not known:
            return None
        weight = draw(st.sampled_from(known))
        return self.add("MatMul", name, weight), self.weights[weight].shape[1]


def computes_the_same_without_units_of_zeros(data):
    net = Random({"x": [4, 6]})
    net.grow(data.draw, data.draw(st.integers(2, 12)))
    crops(net.proto())


@pytest.mark.parametrize("examples", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_random_graphs_compute_the_same_without_units_of_zeros(examples):
    how = settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    how(given(data=st.data())(computes_the_same_without_units_of_zeros))()
