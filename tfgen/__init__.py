"""tfgen: five published image-generative systems in one TensorFlow 2 / Keras library."""

__version__ = "0.1.0"
