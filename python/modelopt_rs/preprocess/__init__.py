"""What comes before a model or an index: inputs from raw data, vectors as bytes."""

from modelopt_rs.preprocess.embeddings import EmbeddingKind, quantize_embeddings

__all__ = ["EmbeddingKind", "quantize_embeddings"]
