"""Measurements, each a command that prints JSON lines: `python -m benchmarks.step --case=vdvae_reference`."""

import tfgen  # noqa: F401  (before TensorFlow: see there)
