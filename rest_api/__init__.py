"""Serve a model bundle over HTTP. Runs without TensorFlow."""
