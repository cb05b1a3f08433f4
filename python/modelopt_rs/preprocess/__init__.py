"""What comes before a model or an index: inputs from raw data, vectors as bytes."""

from modelopt_rs.preprocess.embeddings import EmbeddingKind, quantize_embeddings
from modelopt_rs.preprocess.image import Geometry, Image

__all__ = ["EmbeddingKind", "Geometry", "Image", "quantize_embeddings"]
