"""Model files: read a tensor in row tiles, write a tensor in row tiles.

`open` gives a `Source` for whatever the path is; the classes can be used by themselves.
"""

from modelopt_rs.files.bitmask import Decompressed, bitmask_tensors, sparsity_config
from modelopt_rs.files.checkpoint import CheckpointSource
from modelopt_rs.files.checkpoint_sink import CheckpointSink
from modelopt_rs.files.dequantized import Dequantized, plain
from modelopt_rs.files.formats import open
from modelopt_rs.files.model import Sink, Source, TensorInfo, Tile
from modelopt_rs.files.pack_quantized import PackedSpec, packed_metadata, packed_tensors, quantization_config
from modelopt_rs.files.safetensors import SafetensorsSource
from modelopt_rs.files.safetensors_sink import SafetensorsSink

__all__ = [
    "CheckpointSink",
    "CheckpointSource",
    "Decompressed",
    "Dequantized",
    "PackedSpec",
    "SafetensorsSink",
    "SafetensorsSource",
    "Sink",
    "Source",
    "TensorInfo",
    "Tile",
    "bitmask_tensors",
    "open",
    "packed_metadata",
    "packed_tensors",
    "plain",
    "quantization_config",
    "sparsity_config",
]
