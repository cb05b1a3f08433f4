"""What comes before a model or an index: inputs from raw data, vectors as bytes."""

from modelopt_rs.preprocess.image import Geometry, Image

__all__ = ["Geometry", "Image"]
