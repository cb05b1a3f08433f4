"""A web service that reads digits in photographs: `python examples/service.py --port 8000`.

Plain WSGI out of the standard library, so that any server runs it. A request brings images, one PPM after another:

    curl --data-binary @photo.ppm http://127.0.0.1:8000/

The images are cropped, shrunk, normalized and quantized by one plan, `mo.preprocess.Image`, right into the batch that
an int8 model in onnxruntime reads: the scale and zero point are those of the model's own input. Workers are forked
after everything is imported; each opens its session for itself. `load_test.py` measures it against the same service
with OpenCV and with NumPy. Needs the extra `onnx` and scikit-learn (the model is trained at the start, in a second).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import numpy as np

import modelopt_rs as mo
from digits import Params, digits
from digits_onnx import trained

SIDE, PATCH = 224, 28  # pixels of the model's input, and of the patches that its first layer sees
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_IMAGES, MOST_BYTES = 8, 1 << 26
Prepare = Callable[[list[np.ndarray], np.ndarray], None]
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


# ---- The model


def build(params: Params) -> Any:
    """The perceptron of `digits.py` behind a convolution that sees patches of a photograph, as an onnx.ModelProto.

    The convolution takes the mean of a patch; that images come normalized is taken back in its weights and bias.
    """
    from onnx import TensorProto, helper, numpy_helper

    weight = np.array(STD)[None, :, None, None] * np.ones((1, 3, PATCH, PATCH)) / (3 * PATCH * PATCH)
    arrays = {"patch.weight": weight.astype(np.float32), "patch.bias": np.array([np.mean(MEAN)], np.float32)}
    for name, array in params.items():
        arrays[name] = np.ascontiguousarray(array.T) if array.ndim == 2 else array
    nodes = [
        helper.make_node("Conv", ["image", "patch.weight", "patch.bias"], ["patches"], strides=[PATCH, PATCH]),
        helper.make_node("Flatten", ["patches"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w0", "b0"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w1", "b1"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "photographs",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def photograph(pixels: np.ndarray, rng: np.random.Generator, height: int = 480, width: int = 640) -> np.ndarray:
    """A digit of 8 x 8 pixels in the middle of a photograph: enlarged, with noise and a border of noise."""
    image = rng.integers(0, 30, (height, width, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(height) * 8 // height
    left = (width - height) // 2
    image[:, left : left + height] += (pixels.reshape(8, 8)[rows][:, columns] * 225).astype(np.uint8)[..., None]
    return image


def plan(**options: Any) -> mo.preprocess.Image:
    """How a photograph becomes an input: the middle of it, shrunk, normalized."""
    return mo.preprocess.Image((SIDE, SIDE), resize="crop", mean=MEAN, std=STD, threads=1, **options)


def write(folder: Path, samples: int = 64) -> Path:
    """Train the model, quantize it with photographs as calibration data, and let it take codes; the path."""
    import onnx

    data, rng = digits(), np.random.default_rng(0)
    onnx.save(build(trained(data, epochs=20)), folder / "float32.onnx")
    np.savez(folder / "photographs.npz", image=plan()([photograph(x, rng) for x in data.x[:samples]]))
    calibrated = mo.OnnxOptions(calibrate=folder / "photographs.npz")
    mo.quantize_file(folder / "float32.onnx", folder / "int8.onnx", onnx=calibrated, overwrite=True)
    onnx.save(fed_codes(onnx.load(folder / "int8.onnx")), folder / "service.onnx")
    return folder / "service.onnx"


def write_apart(folder: Path) -> Path:
    """The same in a process of its own, so that this one has no threads when it forks."""
    subprocess.run([sys.executable, __file__, "--write", folder], check=True)
    return folder / "service.onnx"


def fed_codes(model: Any) -> Any:
    """The same model without its first node, QuantizeLinear: codes are what it is given."""
    graph = model.graph
    image = graph.input[0]
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == image.name)
    constants = {each.name: each for each in graph.initializer}
    image.name, image.type.tensor_type.elem_type = first.output[0], constants[first.input[2]].data_type
    graph.node.remove(first)
    return model


def quantization(path: Path) -> tuple[np.dtype[Any], tuple[float, int]]:
    """The dtype of the codes that a model is given, and their scale and zero point: of the node that reads them."""
    import onnx

    graph = onnx.load(path).graph
    reader = next(node for node in graph.node if node.input[0] == graph.input[0].name)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    scale, zero_point = (constants[name] for name in reader.input[1:3])
    return zero_point.dtype, (float(scale), int(zero_point))


# ---- The service


def images_of(body: bytes) -> list[np.ndarray]:
    """The images of a request, PPM files one after another, as views of its bytes; ValueError if it has others."""
    images: list[np.ndarray] = []
    at = 0
    while at < len(body):
        head = body[at : at + 64].split(None, 4)
        try:
            magic, width, height, largest, _ = head
            shape = int(height), int(width), 3
        except ValueError:
            raise ValueError("the body must be PPM files one after another") from None
        if magic != b"P6" or largest != b"255" or min(shape) < 1 or len(images) == MOST_IMAGES:
            raise ValueError(f"the body must be at most {MOST_IMAGES} PPM files of 8 bits (P6, 255)")
        # One white space ends the head: what follows may begin with bytes that look like more of it.
        at += sum(len(word) for word in head[:4]) + 4
        nbytes = shape[0] * shape[1] * 3
        if len(body) - at < nbytes:
            raise ValueError(f"an image of {shape[1]} x {shape[0]} must have {nbytes} bytes, got {len(body) - at}")
        images.append(np.frombuffer(body, np.uint8, nbytes, at).reshape(shape))
        at += nbytes
    return images


class Digits:
    """The application: photographs in, digits out. One for each worker, which answers one request at a time."""

    def __init__(self, model: Path, prepare: Prepare) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.batch = np.zeros((MOST_IMAGES, 3, SIDE, SIDE), quantization(model)[0])
        self.prepare = prepare

    def read(self, images: list[np.ndarray]) -> list[int]:
        """The digits of some images."""
        batch = self.batch[: len(images)]
        self.prepare(images, batch)
        scores = self.session.run(None, {self.input: batch})[0]
        return scores.argmax(axis=1).tolist()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH") or ""
        if environ["REQUEST_METHOD"] != "POST" or not length.isdecimal():
            return answer(start_response, "405 Method Not Allowed", {"error": "POST images with a Content-Length"})
        if int(length) > MOST_BYTES:
            return answer(start_response, "413 Content Too Large", {"error": f"at most {MOST_BYTES} bytes"})
        try:
            images = images_of(environ["wsgi.input"].read(int(length)))
            return answer(start_response, "200 OK", {"digits": self.read(images) if images else []})
        except ValueError as why:
            return answer(start_response, "400 Bad Request", {"error": str(why)})


def answer(start_response: Callable[..., Any], status: str, found: Any) -> Iterable[bytes]:
    """Begin a response of JSON, and return its bytes."""
    body = json.dumps(found).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def ours(model: Path) -> Prepare:
    """Photographs into a batch of codes, by one plan that is made once."""
    dtype, codes = quantization(model)
    prepare = plan(dtype=dtype, quantization=codes)

    def run(images: list[np.ndarray], out: np.ndarray) -> None:
        prepare(images, out=out)

    return run


# ---- Workers


class Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_message(self, *_: Any) -> None:
        pass


class Listener(WSGIServer):
    """A listening socket that several workers accept from."""

    request_queue_size = 128

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called."""
        self.allow_reuse_address = True
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]
        self.setup_environ()
        self.parent = os.getpid()
        self.socket.setblocking(False)  # two workers see a connection, one gets it: the other doesn't wait for the next

    def service_actions(self) -> None:
        """End where the parent has: nobody else would end a worker."""
        if os.getppid() != self.parent:
            os._exit(1)


@dataclass
class Workers:
    """Processes that answer at a port."""

    port: int
    pids: list[int]

    def stop(self) -> None:
        """End them."""
        for pid in self.pids:
            os.kill(pid, signal.SIGTERM)
        for pid in self.pids:
            os.waitpid(pid, 0)


def fork(make: Callable[[], Application], workers: int, port: int = 0) -> Workers:
    """Listen, then fork workers that each make an application and serve it until they are ended."""
    listener = Listener(("127.0.0.1", port), Quiet)
    pids = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                listener.set_app(make())
                listener.serve_forever()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    bound = listener.server_port
    listener.socket.close()
    return Workers(bound, pids)


def main() -> int:
    """Train, quantize and serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="only write the model there")
    args = parser.parse_args()
    if args.write:
        write(args.write)
        return 0
    with tempfile.TemporaryDirectory(prefix="service-") as folder:
        model = write_apart(Path(folder))
        workers = fork(lambda: Digits(model, ours(model)), args.workers, args.port)
        print(f"{args.workers} workers at http://127.0.0.1:{workers.port}/; to stop them: Ctrl-C", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            workers.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
