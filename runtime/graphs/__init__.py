"""A version as ONNX graphs: written by hand, rounded by rule, proven equal, kept beside the store."""
