"""What the kernels are compiled and linked against: the TensorFlow that $PYTHON_BIN_PATH imports, and CUDA where nvcc is.

`@local_tensorflow//:defs.bzl` says TENSORFLOW_VERSION, and NVCC: its path, or "" where there is none or TFGEN_CUDA=0.
"""

_PROBE = """
import tensorflow as tf
print(tf.sysconfig.get_include(), tf.sysconfig.get_lib(), tf.__version__, tf.sysconfig.CXX11_ABI_FLAG, sep="\\n")
"""

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "tensorflow",
    srcs = ["libtensorflow_framework.so.2"],
    hdrs = glob(["include/**"], exclude = ["**/*.so", "**/* *"]),
    defines = ["_GLIBCXX_USE_CXX11_ABI={abi}", "EIGEN_MAX_ALIGN_BYTES=64"],
    includes = ["include"],
)
"""

_CUDA_BUILD = """
cc_library(
    name = "cuda",
    srcs = ["cuda/lib64/libcudart_static.a"],
    hdrs = glob(["cuda/include/*.h", "cuda/include/crt/**"]),
    includes = ["cuda/include"],
    linkopts = ["-ldl", "-lrt", "-lpthread"],
)
"""

def _cuda_toolkit(context, nvcc):
    """The folder of the toolkit, which nvcc itself says: nvcc may be a script or a link somewhere else."""
    dry_run = context.execute([nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null"])
    for line in dry_run.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return context.path(line[len("#$ TOP="):].strip())
    fail("%s does not say where its toolkit is; TFGEN_CUDA=0 builds without it:\n%s" % (nvcc, dry_run.stderr))

def _find_nvcc(context):
    """Of $CUDA_HOME, on the path, or in the usual folder, as in setup.py; "" where there is none."""
    home = context.os.environ.get("CUDA_HOME")
    if home and context.path(home + "/bin/nvcc").exists:
        return home + "/bin/nvcc"
    on_path = context.which("nvcc")
    if on_path:
        return str(on_path)
    usual = "/usr/local/cuda/bin/nvcc"
    return usual if context.path(usual).exists else ""

def _tensorflow_configure(context):
    python = context.os.environ.get("PYTHON_BIN_PATH") or fail("PYTHON_BIN_PATH must name the environment's Python")
    probe = context.execute([python, "-c", _PROBE], environment = {"TF_CPP_MIN_LOG_LEVEL": "3"})
    if probe.return_code != 0:
        fail("%s cannot import TensorFlow:\n%s" % (python, probe.stderr))
    include, library, version, abi = probe.stdout.strip().split("\n")
    context.symlink(include, "include")
    context.symlink(library + "/libtensorflow_framework.so.2", "libtensorflow_framework.so.2")
    build = _BUILD.format(abi = abi)

    nvcc = "" if context.os.environ.get("TFGEN_CUDA") == "0" else _find_nvcc(context)
    if nvcc:
        context.symlink(_cuda_toolkit(context, nvcc), "cuda")
        build += _CUDA_BUILD
    context.file("BUILD", build)
    context.file("defs.bzl", "TENSORFLOW_VERSION = \"%s\"\nNVCC = \"%s\"\n" % (version, nvcc))

tensorflow_configure = repository_rule(
    implementation = _tensorflow_configure,
    environ = ["PYTHON_BIN_PATH", "TFGEN_CUDA", "CUDA_HOME", "PATH"],
    local = True,
)
