"""Serve a model bundle over HTTP. Runs without TensorFlow."""

__version__ = "0.2.0"
