"""BERT as exporters write it: one ONNX model, in the ways in which its shapes and norms can stand there."""

import numpy as np
from onnx import TensorProto

from graph_nets import Net

HIDDEN, HEADS, WIDTH, INNER, POOLED = 12, 4, 3, 10, 8


class Encoder(Net):
    """Layers of BERT, with nodes as torch writes them."""

    def linear(self, x, name, inputs, outputs):
        h = self.add("MatMul", x, self.w(f"{name}.weight", inputs, outputs))
        return self.add("Add", self.w(f"{name}.bias", outputs), h)

    def shape(self, x, how, *tail):
        """Return the shape (batch, words, *tail): as a constant, or put together from the lengths of x."""
        name = f"shape_{len(self.nodes)}"
        if how == "constant":
            return self.ints(name, 0, -1, *tail)
        parts = []
        for axis in (0, 1):
            length = self.add("Gather", self.add("Shape", x), self.int0(f"{name}.{axis}", axis), axis=0)
            parts.append(self.add("Unsqueeze", length, self.ints(f"{name}.axes{axis}", 0)))
        for number in tail:
            value = self.int0(f"{name}.number{number}.{len(self.weights)}", number)
            if how == "lengths":
                value = self.add("Unsqueeze", value, self.ints(f"{name}.zero{len(self.weights)}", 0))
            else:
                self.weights[value] = self.weights[value].reshape(1)
            parts.append(value)
        return self.add("Concat", *parts, axis=0)

    def norm(self, x, name, how):
        scale, bias = self.positive(f"{name}.scale", HIDDEN), self.w(f"{name}.bias", HIDDEN)
        if how == "node":
            return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
        self.weights["two"], self.weights["eps"] = np.float32(2), np.float32(1e-5)
        mean = {"axes": [-1]} if self.opset < 18 else {}
        axes = [] if self.opset < 18 else [self.ints("last", -1)]
        d = self.add("Sub", x, self.add("ReduceMean", x, *axes, **mean))
        var = self.add("ReduceMean", self.add("Pow", d, "two"), *axes, **mean)
        h = self.add("Div", d, self.add("Sqrt", self.add("Add", var, "eps")))
        return self.add("Add", self.add("Mul", h, scale), bias)

    def attention(self, x, name, how, mask):
        q, k, v = (self.linear(x, f"{name}.{n}", HIDDEN, HEADS * WIDTH) for n in "qkv")
        q, k, v = (self.add("Reshape", each, self.shape(each, how, HEADS, WIDTH)) for each in (q, k, v))
        q, v = (self.add("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, v))
        self.weights["root"] = np.float32(np.sqrt(WIDTH))
        scores = self.add("Div", self.add("MatMul", q, self.add("Transpose", k, perm=[0, 2, 3, 1])), "root")
        weights = self.add("Softmax", self.add("Add", scores, mask), axis=-1)
        h = self.add("Transpose", self.add("MatMul", weights, v), perm=[0, 2, 1, 3])
        h = self.add("Reshape", h, self.shape(h, how, HEADS * WIDTH))
        return self.linear(h, f"{name}.out", HEADS * WIDTH, HIDDEN)

    def layer(self, x, name, how, mask, norm="node"):
        x = self.norm(self.add("Add", self.attention(x, name, how, mask), x), f"{name}.norm1", norm)
        h = self.linear(x, f"{name}.up", HIDDEN, INNER)
        self.weights["half"], self.weights["one"], self.weights["sqrt2"] = map(np.float32, (0.5, 1, np.sqrt(2)))
        gelu = self.add("Mul", h, self.add("Add", self.add("Erf", self.add("Div", h, "sqrt2")), "one"))
        h = self.linear(self.add("Mul", gelu, "half"), f"{name}.down", INNER, HIDDEN)
        return self.norm(self.add("Add", h, x), f"{name}.norm2", norm)


def bert(how, norm="node", head=True, opset=17):
    net = Encoder({"ids": ["batch", "words"], "mask": ["batch", "words"]}, opset=opset)
    net.input_types["ids"] = TensorProto.INT64
    x = net.add("Gather", net.w("words", 7, HIDDEN), "ids", axis=0)
    x = net.norm(net.add("Add", x, net.w("positions", 1, 1, HIDDEN)), "embedding", norm)
    mask = net.add("Unsqueeze", "mask", net.ints("ones", 1, 2))
    for name in ("0", "1"):
        x = net.layer(x, name, how, mask, norm)
    if head:
        first = net.add("Gather", x, net.int0("first", 0), axis=1)
        h = net.add(
            "Tanh", net.add("Gemm", first, net.w("pool.weight", POOLED, HIDDEN), net.w("pool.bias", POOLED), transB=1)
        )
        net.add("Gemm", h, net.w("head.weight", 2, POOLED), net.w("head.bias", 2), transB=1, out="y")
    else:
        net.add("Identity", x, out="y")
    return net.proto()
