"""Builds and installs tfgen.

The presets lie in the top-level folder `flags/` and travel in the wheel as `tfgen/flags/<system>/<preset>.flags`.
An editable install reads them where they are.

The kernels in `kernels/` become `tfgen/_kernels_tf<version>.so`, for the TensorFlow that this Python imports. Those for
GPUs are in it where nvcc is found. What is missing (a compiler, TensorFlow, nvcc) is said, and left out: tfgen then
runs in plain TensorFlow. A compiler that is there and fails is an error. Variables of the environment:

    CXX                     the C++ compiler
    TFGEN_CUDA=0            leave out the kernels for GPUs
    TFGEN_KERNEL_CXXFLAGS   more flags for the C++ compiler
"""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

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
    "scipy",
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
    "lsun": ["lmdb"],  # `python -m tfgen.convert lsun` reads its databases
    # The tools of the tests, then what Horovod needs beside TensorFlow, to be built and to run.
    "dev": ["mypy", "pytest", "ruff", "cloudpickle", "packaging", "psutil", "pyyaml", "wheel"],
}

# Without -fno-trapping-math and -fno-math-errno no loop with a comparison or a square root is vectorised.
CXX_FLAGS = ["-O3", "-g0", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
# Ampere and Hopper as machine code, and the latter's PTX for what comes after them.
CUDA_ARCHITECTURES = ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"]


def tensorflow_version():
    """The version that this Python would import, without importing it, which takes seconds; "" if there is none."""
    found = importlib.util.find_spec("tensorflow")
    for folder in (found and found.submodule_search_locations) or []:
        header = pathlib.Path(folder, "include", "tensorflow", "core", "public", "version.h")
        if header.exists():
            numbers = dict(re.findall(r"#define TF_(\w+)_VERSION (\d+)", header.read_text(encoding="utf-8")))
            return ".".join(numbers[part] for part in ("MAJOR", "MINOR", "PATCH"))
    return ""


CXX = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("c++") or ""]
TENSORFLOW = tensorflow_version()


def say(message):
    print(f"tfgen: {message}", file=sys.stderr, flush=True)


def kernels():
    """The library of operations, as the one extension module; none where it cannot be built."""
    if not shutil.which(CXX[0]):
        say("no compiled kernels, everything runs in plain TensorFlow: there is no C++ compiler ($CXX, g++, c++)")
        return []
    if not TENSORFLOW:
        say("no compiled kernels, everything runs in plain TensorFlow: this Python has none to compile them against")
        say("to build them, install TensorFlow and type: pip install --no-build-isolation -e .")
        return []
    paths = {kind: sorted((ROOT / "kernels").rglob(f"*.{kind}")) for kind in ("cc", "cu", "h", "cuh")}
    names = {kind: [str(path.relative_to(ROOT)) for path in found] for kind, found in paths.items()}
    return [Extension("tfgen._kernels", sources=names["cc"] + names["cu"], depends=names["h"] + names["cuh"])]


def find_nvcc():
    """The compiler of CUDA: of $CUDA_HOME, on the path, or in the usual folder; None."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else []
    return next(filter(None, map(shutil.which, [*places, "nvcc", "/usr/local/cuda/bin/nvcc"])), None)


class BuildKernels(build_ext):
    """Compiles `kernels/` into one library of TensorFlow operations."""

    def get_ext_filename(self, fullname):
        # A library of operations, not a Python module; named for the one version of TensorFlow that may load it.
        return os.path.join(*fullname.split(".")) + f"_tf{TENSORFLOW}.so"

    def build_extension(self, ext):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from tensorflow import sysconfig

        folder = pathlib.Path(self.build_temp)
        library = pathlib.Path(self.get_ext_fullpath(ext.name))
        for path in (folder, library.parent):
            path.mkdir(parents=True, exist_ok=True)
        flags = ["-I.", *sysconfig.get_compile_flags(), *CXX_FLAGS]
        # CUDA's runtime stands before TensorFlow in the link, or the library would bind to the stubs that TensorFlow's
        # GPU build exports, which its CPU build lacks.
        link = [*sysconfig.get_link_flags(), "-Wl,--as-needed", "-ldl", "-lrt", "-lpthread"]
        commands = []
        toolkit = self.cuda_toolkit()
        if toolkit:
            flags += ["-DGOOGLE_CUDA=1", f"-I{toolkit / 'include'}"]
            runtime = next(path for path in (toolkit / "lib64", toolkit / "lib") if path.is_dir())
            link = [f"-L{runtime}", "-Wl,--exclude-libs,ALL", "-lcudart_static", *link]
            commands += [self.nvcc(toolkit, source, folder) for source in ext.sources if source.endswith(".cu")]
        flags += shlex.split(os.environ.get("TFGEN_KERNEL_CXXFLAGS", ""))
        for source in ext.sources:
            if source.endswith(".cc"):
                commands.append([*CXX, "-c", *flags, source, "-o", str(self.object_of(source, folder))])
        self.run_together(commands)
        objects = [command[-1] for command in commands]
        partial = library.with_suffix(".partial")  # renamed when whole: another process may have the old one open
        self.spawn([*CXX, "-shared", *objects, "-o", str(partial), *link])
        for stale in library.parent.glob("_kernels_tf*.so"):
            stale.unlink()
        partial.rename(library)

    def object_of(self, source, folder):
        return folder / (source.replace(os.sep, "-") + ".o")

    def cuda_toolkit(self):
        """The folder of CUDA's headers and libraries; None, with a message, where the kernels for GPUs are left out."""
        nvcc = find_nvcc()
        if os.environ.get("TFGEN_CUDA") == "0" or not nvcc:
            reason = "nvcc was not found" if not nvcc else "TFGEN_CUDA=0"
            say(f"kernels for the CPU only: {reason}")
            return None
        # nvcc may be a script or a link somewhere else: it says itself where the toolkit is.
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=False,
        )
        top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
        toolkit = pathlib.Path(top[1].strip() if top else pathlib.Path(nvcc).resolve().parents[1]).resolve()
        if not (toolkit / "include" / "cuda_runtime.h").exists():
            raise SystemExit(
                f"{nvcc} works, but {toolkit}/include/cuda_runtime.h is missing; TFGEN_CUDA=0 builds without"
            )
        return toolkit

    def nvcc(self, toolkit, source, folder):
        codes = [word for code in CUDA_ARCHITECTURES for word in ("-gencode", code)]
        flags = ["-I.", "-O3", "-std=c++17", "-Xcompiler", "-fPIC", "--threads", "0", *codes]
        return [find_nvcc(), "-c", *flags, source, "-o", str(self.object_of(source, folder))]

    def run_together(self, commands):
        """As many at a time as there are processors; the first that fails is the error of all."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(self.spawn, commands))


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
    ext_modules=kernels(),
    cmdclass={"build_ext": BuildKernels},
    zip_safe=False,
)
