"""Builds and installs tfgen.

The presets lie in the top-level folder `flags/` and travel in the wheel as `tfgen/flags/<system>/<preset>.flags`.
An editable install reads them where they are.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "tfgen" / "__init__.py").read_text(encoding="utf-8")).group(1)

# TensorFlow 2.15 is the newest release that TensorFlow Addons and Horovod both work with. Its wheels for CPU and GPU
# own the same folder and must not be installed together, so the user chooses one by an extra.
INSTALL_REQUIRES = [
    "absl-py",
    "importlib_resources",  # TensorFlow Datasets imports it without requiring it
    "numpy>=1.23.5,<2",
    "pillow",
    "protobuf>=4.25.2,<5",
    "scikit-learn",
    "setuptools<80.9",  # tensorboard 2.15 imports pkg_resources: later releases warn about that, from 81 on lack it
    "tensorboard>=2.15,<2.16",
    "tensorflow-addons==0.23.0",
    "tensorflow-datasets>=4.9.4,<4.10",
    "tensorflow-metadata>=1.17,<1.18",  # 1.18 needs a newer protobuf than TensorFlow 2.15 allows
    "tqdm",
]

EXTRAS_REQUIRE = {
    "cpu": ["tensorflow-cpu>=2.15,<2.16"],
    "gpu": ["tensorflow[and-cuda]>=2.15,<2.16"],
    "horovod": ["horovod==0.28.1"],  # compiles against the installed TensorFlow: see README.md
    # The tools of the tests, then what Horovod needs beside TensorFlow, to be built and to run.
    "dev": ["mypy", "pytest", "ruff", "cloudpickle", "packaging", "psutil", "pyyaml", "wheel"],
}

setup(
    name="tfgen",
    version=VERSION,
    description="Five published image-generative systems in one TensorFlow 2 / Keras library",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.12",  # TensorFlow Addons has no wheels for later ones
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    packages=[*find_packages(include=["tfgen", "tfgen.*"]), "tfgen.flags"],
    package_dir={"tfgen.flags": "flags"},
    package_data={"tfgen.flags": ["*/*.flags"]},
)
