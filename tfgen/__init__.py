"""tfgen: five published image-generative systems in one TensorFlow 2 / Keras library."""

import os

__version__ = "0.1.0"

# TensorFlow decides by the processor whether it computes with oneDNN, and leaves it off where there is only AVX2. The
# gradients of convolutions take twice as long without it. Read when TensorFlow is imported, so it is set here.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
