"""What comes before a model or an index: inputs from raw data, vectors as bytes."""

from modelopt_rs.preprocess.embeddings import EmbeddingKind, quantize_embeddings
from modelopt_rs.preprocess.image import Geometry, Image
from modelopt_rs.signatures import show_options

__all__ = ["EmbeddingKind", "Geometry", "Image", "quantize_embeddings"]


def __dir__() -> list[str]:
    """Without what these are made from."""
    return sorted(__all__)


show_options(globals())
