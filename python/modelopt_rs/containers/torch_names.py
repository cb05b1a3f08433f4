"""What the pickles of torch.save may name besides the functions that make tensors of storages."""

import re
from typing import Final

__all__ = ["BESIDE", "CLASSES", "OF_NO_DTYPE", "PACKAGES", "STORAGES"]

STORAGES: Final = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "QInt8Storage": "I8",
    "QUInt8Storage": "U8",
    "QInt32Storage": "I32",
}
# Objects that stand beside the weights in checkpoints. They are not made, and nothing is kept of them.
BESIDE: Final = (
    "argparse Namespace",
    "types SimpleNamespace",
    "pathlib Path",
    "pathlib PosixPath",
    "pathlib WindowsPath",
    "pathlib PurePosixPath",
    "pathlib._local PosixPath",
    "datetime datetime",
    "datetime date",
    "datetime timedelta",
    "uuid UUID",
    "_codecs encode",
    "collections deque",
    "decimal Decimal",
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "torch device",
    "torch.serialization _get_layout",
    "numpy.random._pickle __generator_ctor",
    "numpy.random._pickle __bit_generator_ctor",
    "torch Generator",
    "builtins bytearray",
    "builtins complex",
    "builtins slice",
    "builtins range",
    "__builtin__ bytearray",
    "__builtin__ complex",
)
OF_NO_DTYPE: Final = re.compile(r"torch(\.cuda)? (\w+Storage|complex\d+|bits\w+|float4\w+|u?int\d+)")
# Packages whose objects stand there too: settings and callbacks. Stand-ins are made of all that has such a name.
PACKAGES: Final = ("lightning", "lightning_fabric", "omegaconf", "pytorch_lightning")
# Classes that are named, and never called.
CLASSES: Final = (
    "torch Tensor",
    "torch._tensor Tensor",
    "torch.nn.parameter Parameter",
    "torch.nn.parameter Buffer",
    "numpy ndarray",
    *(f"numpy {name}" for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool_")),
    *(f"numpy.random.{name}" for name in ("_pcg64 PCG64", "_mt19937 MT19937")),
    "builtins object",
    "builtins int",
    "builtins float",
    "builtins str",
    "__builtin__ object",
    "torch strided",
    "torch per_tensor_affine",
    "torch per_channel_affine",
    "typing Any",
    "torch contiguous_format",
)
