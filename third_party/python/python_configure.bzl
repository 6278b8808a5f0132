"""The Python toolchain: the interpreter that $PYTHON_BIN_PATH names, which has tfgen's requirements installed."""

_BUILD = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(name = "runtime", interpreter_path = "{python}", python_version = "PY3")

py_runtime_pair(name = "runtimes", py3_runtime = ":runtime")

toolchain(name = "toolchain", toolchain = ":runtimes", toolchain_type = "@bazel_tools//tools/python:toolchain_type")
"""

def _python_configure(context):
    python = context.os.environ.get("PYTHON_BIN_PATH")
    if not python:
        fail("PYTHON_BIN_PATH must name the environment's Python. `make bazel-test` sets it, or type: " +
             "PYTHON_BIN_PATH=$PWD/.venv/bin/python bazel test //...")
    context.file("BUILD", _BUILD.format(python = python))

python_configure = repository_rule(implementation = _python_configure, environ = ["PYTHON_BIN_PATH"], local = True)
