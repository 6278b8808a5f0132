"""What `runs.start` has imported before it forks. Nothing here may start TensorFlow's threads."""

from __future__ import annotations

import importlib
import pkgutil

import tfgen

for module in pkgutil.walk_packages(tfgen.__path__, "tfgen."):
    importlib.import_module(module.name)
