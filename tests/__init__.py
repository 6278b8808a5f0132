"""Tests, in folders that mirror the library's."""

import tfgen  # noqa: F401  (before TensorFlow: see there)
