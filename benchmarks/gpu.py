"""`python -m benchmarks.gpu`: the CUDA kernels of block-sparse attention at published shapes and at long rows, and of
Langevin steps.

Calls the C ABI. Needs PyTorch with a CUDA device and nvcc, not TensorFlow. Prints one JSON line a case: medians of
forward and backward in milliseconds, the bytes that must move (each operand and result once) a second and their share
of a measured copy bandwidth, operations a second on kept blocks (2 products forward, 5 backward), and the same times of
PyTorch's FlexAttention, with the same mask in blocks of 128, and of its dense causal attention, with the error instead
where one of them does not run (`--beside` chooses among them). The first line is the copy bandwidth. Every case is
checked against float32 attention before it is timed. `--rows short long` times both kernels of 16-bit types at every
shape, to see at which length of a row they cross (kLongRow in blocksparse.cu; heads of 32 have one kernel). The last
lines are Langevin steps on tensors of `--langevin_mib`, with their share of the copy bandwidth.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.gpu import build
from tests.gpu.block_lists import band, classes, kernel_order
from tests.kernels.langevin import Step


@dataclasses.dataclass(frozen=True)
class Layer:
    """One kind of layer: 16 heads of 32 and blocks of 32 are those of the published networks."""

    length: int
    window: int
    mode: str  # b or bT
    heads: int = 16
    width: int = 32
    blocksize: int = 32

    @property
    def stride(self) -> int:
        return self.window if self.mode == "bT" else 1

    def mask(self) -> np.ndarray:
        """bool [1, T, T], kernel order."""
        return classes(self.length, self.window) if self.mode == "bT" else band(self.length, self.window)


LAYERS = {
    "c10_b": Layer(3072, 96, "b"),
    "c10_bT": Layer(3072, 96, "bT"),
    "i64_b": Layer(12288, 128, "b"),
    "i64_bT": Layer(12288, 128, "bT"),
    # Long rows: every key of the past, and bands of many blocks, on both sides of kLongRow for heads of 64.
    "causal_32": Layer(4096, 4096, "b", blocksize=64),
    "causal_64": Layer(4096, 4096, "b", width=64, blocksize=64),
    "causal_128": Layer(4096, 4096, "b", heads=8, width=128, blocksize=128),
    "causal_64_in_blocks_of_32": Layer(4096, 4096, "b", width=64),
    "band_192": Layer(12288, 192, "b"),
    "band_384": Layer(12288, 384, "b"),
    "band_1536": Layer(12288, 1536, "b"),
    "band_384_width_64": Layer(12288, 384, "b", heads=8, width=64, blocksize=64),
    "band_1536_width_64": Layer(12288, 1536, "b", heads=8, width=64, blocksize=64),
    "classes_of_1536": Layer(12288, 8, "bT"),
}
LANGEVIN_STEPS = {
    "value_clip": Step(clip_mode="value"),
    "tensor_norm": Step(clip_mode="tensor_norm"),
    "last_step": Step(clip_mode="value", emit_next=False),
}
ENTRIES = {"as_it_is": None, "short": 0, "long": 2**31 - 1}  # what to tell the launchers, who choose the kernel by it
DTYPES = ("float16", "bfloat16", "float32")
BESIDE = ("flex", "dense")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS), help="shapes to time")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="dtypes to time")
    parser.add_argument("--rows", nargs="+", choices=ENTRIES, default=["as_it_is"], help="kernels of 16-bit types")
    parser.add_argument("--beside", nargs="*", choices=BESIDE, default=list(BESIDE), help="what of PyTorch to time too")
    parser.add_argument("--langevin_mib", type=int, nargs="*", default=[256], help="sizes of tensors of Langevin steps")
    parser.add_argument("--batch", type=int, default=4, help="sequences; few of them do not fill a large card")
    parser.add_argument("--repeats", type=int, default=50, help="timed calls, after five to warm up")
    options = parser.parse_args(argv)
    reason = build.reason_to_skip()
    if reason is not None:
        parser.exit(1, f"benchmarks.gpu cannot run here: {reason}\n")

    import torch

    bandwidth = copy_bandwidth(options.repeats)
    device = torch.cuda.get_device_name()
    print(json.dumps({"benchmark": "gpu", "device": device, "copy_bytes_per_second": round(bandwidth)}), flush=True)
    for name, dtype_name in itertools.product(options.layers, options.dtypes):
        layer, dtype = LAYERS[name], getattr(torch, dtype_name)
        for rows in options.rows if dtype_name != "float32" else ["as_it_is"]:
            line = {"benchmark": "gpu", "device": device, "layer": name, "dtype": dtype_name, "batch": options.batch}
            line |= {"rows": rows} | measure(layer, dtype, options.batch, options.repeats, bandwidth, rows)
            for other in options.beside:
                line |= measure_beside(other, layer, dtype, options.batch, options.repeats)
            print(json.dumps(line), flush=True)
    for mib in options.langevin_mib:
        for kind, step in LANGEVIN_STEPS.items():
            line = {"benchmark": "gpu", "device": device, "langevin": kind, "tensor_mib": mib}
            print(json.dumps(line | measure_langevin(step, mib, options.repeats, bandwidth)), flush=True)
    return 0


def milliseconds(call: Callable[[], Any], repeats: int, before: Callable[[], Any] | None = None) -> float:
    """Median time of a call on the device, by CUDA events; `before` runs ahead of each one, untimed."""
    import torch

    # Larger than any L2 cache; written before each call, so that operands come from device memory.
    scratch = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times = []
    for repeat in range(repeats + 5):
        if before is not None:
            before()
        scratch.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if repeat >= 5:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_bandwidth(repeats: int) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB."""
    import torch

    source = torch.zeros(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source), repeats) * 1e-3)


def measure(layer: Layer, dtype: Any, batch: int, repeats: int, bandwidth: float, rows: str) -> dict[str, Any]:
    import torch

    from tests.gpu.launchers import Launchers

    mask = layer.mask()
    attention = Launchers(build.library(), mask, layer.heads, layer.blocksize, layer.stride, ENTRIES[rows])
    torch.manual_seed(0)
    shape = [batch, layer.length, layer.heads * layer.width]
    q, k, v, dout = (torch.randn(shape, device="cuda").to(dtype) for _ in range(4))
    out, dq, dk, dv = (torch.empty_like(q) for _ in range(4))
    lse, delta = (torch.empty(batch, layer.heads, layer.length, device="cuda") for _ in range(2))

    def forward() -> None:
        attention.forward(q, k, v, out, lse)

    def backward() -> None:
        attention.backward(q, k, v, out, dout, lse, delta, dq, dk, dv)

    forward()
    backward()
    check(layer, q, k, v, out, mask)

    tensor_bytes, row_bytes = q.numel() * q.element_size(), lse.numel() * lse.element_size()
    size = layer.blocksize
    blocks = mask.reshape(mask.shape[1] // size, size, -1, size).any(axis=(1, 3)).sum()
    product = 2 * size * size * layer.width * int(blocks) * layer.heads * batch  # operations of one
    result: dict[str, Any] = {"kept_blocks_per_head": int(blocks)}
    # Forward: q, k, v, out, lse. Backward: q, k, v, out, dout, dq, dk, dv and lse.
    for name, call, tensors, products in (("forward", forward, 4, 2), ("backward", backward, 8, 5)):
        seconds = milliseconds(call, repeats) * 1e-3
        needed = tensors * tensor_bytes + row_bytes
        result |= {
            f"{name}_ms": round(seconds * 1e3, 4),
            f"{name}_bytes_per_second": round(needed / seconds),
            f"{name}_share_of_bandwidth": round(needed / seconds / bandwidth, 3),
            f"{name}_flop_per_second": round(products * product / seconds),
        }
    return result


def check(layer: Layer, q: Any, k: Any, v: Any, out: Any, mask: np.ndarray) -> None:
    """Compares the first head of the first sequence.

    Raises:
      RuntimeError: if the output is off by more than rounding.
    """
    import torch

    order = torch.from_numpy(kernel_order(layer.length, layer.stride)).cuda()
    q, k, v, out = (x[0, order, : layer.width].float() for x in (q, k, v, out))
    scores = (q @ k.T / math.sqrt(layer.width)).masked_fill(~torch.from_numpy(mask[0]).cuda(), -math.inf)
    error = (scores.softmax(-1) @ v - out).abs().max().item()
    if not error < 0.05:
        raise RuntimeError(f"{layer}: the output differs from dense attention by {error}; nothing to time")


def measure_langevin(step: Step, mib: int, repeats: int, bandwidth: float) -> dict[str, Any]:
    """A step reads x and g, with a clip by norm g once more, and writes x' and, but for the last one, y'."""
    import torch

    from tests.gpu.langevin_launchers import Launchers, Prepared, empty

    launchers = Launchers(build.library("langevin"))
    shape = [64, mib << 12]  # of 4 bytes
    x, g = torch.rand(shape, device="cuda"), 0.01 * torch.randn(shape, device="cuda")
    x_next, y_next = empty(*shape), empty(*shape) if step.emit_next else None
    arguments = Prepared(step, x, g).forward(x_next, y_next)
    seconds = milliseconds(lambda: launchers.call("langevin_forward", arguments), repeats) * 1e-3
    tensors = 3 + step.emit_next + step.clip_mode.endswith("norm")
    needed = tensors * (mib << 20)
    if not bool(torch.isfinite(x_next).all()):
        raise RuntimeError("a Langevin step gave what is not finite; nothing to time")
    return {
        "forward_ms": round(seconds * 1e3, 4),
        "forward_bytes_per_second": round(needed / seconds),
        "forward_share_of_bandwidth": round(needed / seconds / bandwidth, 3),
    }


def measure_beside(name: str, layer: Layer, dtype: Any, batch: int, repeats: int) -> dict[str, Any]:
    """Times of another implementation, on contiguous [B, H, T, D], or why it has none."""
    import torch

    function = flex(layer) if name == "flex" else dense_causal
    shape = [batch, layer.heads, layer.length, layer.width]
    q, k, v = (torch.randn(shape, device="cuda").to(dtype).requires_grad_() for _ in range(3))
    upstream = torch.randn(shape, device="cuda").to(dtype)
    outs: list[Any] = []

    def forward() -> None:
        with torch.no_grad():
            function(q, k, v)

    def before_backward() -> None:
        outs[:] = [function(q, k, v)]

    def backward() -> None:
        torch.autograd.grad(outs[0], (q, k, v), upstream)

    try:
        return {
            f"{name}_forward_ms": round(milliseconds(forward, repeats), 4),
            f"{name}_backward_ms": round(milliseconds(backward, repeats, before_backward), 4),
        }
    except Exception as error:  # whatever it raises, the line says so and our own times stand
        return {f"{name}_error": f"{type(error).__name__}: {error}"[:200]}


def flex(layer: Layer) -> Callable[..., Any]:
    """FlexAttention with the same kept pairs; mode bT in kernel order, its transpositions not timed."""
    import torch

    length, window = layer.length, layer.window
    per_class = length // window

    def kept(_b: Any, _h: Any, query: Any, key: Any) -> Any:
        if layer.mode == "b":
            return (key <= query) & (query - key < window)
        return (key <= query) & (query // per_class == key // per_class)

    compiled: list[Any] = []

    def call(q: Any, k: Any, v: Any) -> Any:
        if not compiled:  # here, so that a release without it is an error of this line alone
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            compiled.extend((torch.compile(flex_attention), create_block_mask(kept, None, None, length, length)))
        return compiled[0](q, k, v, block_mask=compiled[1])

    return call


def dense_causal(q: Any, k: Any, v: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


if __name__ == "__main__":
    raise SystemExit(main())
