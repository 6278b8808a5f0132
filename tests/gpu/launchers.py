"""The CUDA launchers of kernels/blocksparse/blocksparse.h, called through ctypes with PyTorch tensors."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import pathlib

import numpy as np
import torch

from tests.gpu.block_lists import BlockLists, block_lists

DEVICE = "cuda"
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INT64, _INT32, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, _INT64) for name in ("batch", "heads", "length", "key_size", "value_size")),
        *((name, _INT32) for name in ("blocksize", "stride", "dtype")),
        ("scale", ctypes.c_float),
    ]


class _Lists(ctypes.Structure):
    _fields_ = [
        *((name, _INT32) for name in ("layouts", "entries")),
        *((name, _POINTER) for name in ("offsets", "columns", "masks", "mask_bits")),
    ]


class _Forward(ctypes.Structure):
    _fields_ = [("shape", _Shape), ("rows", _Lists), *((name, _POINTER) for name in ("q", "k", "v", "out", "lse"))]


class _Backward(ctypes.Structure):
    _fields_ = [
        ("shape", _Shape),
        ("rows", _Lists),
        ("columns", _Lists),
        *((name, _POINTER) for name in ("q", "k", "v", "out", "dout", "lse", "delta", "dq", "dk", "dv")),
    ]


@dataclasses.dataclass
class Launchers:
    """Attention over one pattern.

    Args:
      path: the shared library.
      mask: bool [layouts, T, T], kept pairs in kernel order; one layout, or one a head.
      heads, blocksize, stride: as in TfgenBlocksparseShape.
      entries: told to the launchers in place of the number of entries, by which they choose between the kernels of
        short rows (0) and long rows (2**31 - 1); results do not depend on it.
    """

    path: pathlib.Path
    mask: np.ndarray
    heads: int
    blocksize: int
    stride: int = 1
    entries: int | None = None

    def __post_init__(self) -> None:
        self._library = ctypes.CDLL(str(self.path))
        self._kept: list[torch.Tensor] = []  # what the structs point to
        self._rows = self._on_device(block_lists(self.mask, self.blocksize))
        self._columns = self._on_device(block_lists(self.mask.swapaxes(1, 2), self.blocksize))

    def _on_device(self, lists: BlockLists) -> _Lists:
        arrays = (lists.offsets, lists.columns, lists.masks, lists.mask_bits.view(np.int32))
        tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE) for array in arrays]
        self._kept += tensors
        entries = len(lists.columns) if self.entries is None else self.entries
        return _Lists(lists.layouts, entries, *(tensor.data_ptr() for tensor in tensors))

    def _shape(self, q: torch.Tensor, v: torch.Tensor) -> _Shape:
        batch, length, features = q.shape
        key_size = features // self.heads
        sizes = (batch, self.heads, length, key_size, v.shape[2] // self.heads)
        return _Shape(*sizes, self.blocksize, self.stride, _DTYPES[q.dtype], 1 / math.sqrt(key_size))

    def _call(self, name: str, arguments: ctypes.Structure) -> None:
        stream = torch.cuda.current_stream().cuda_stream if DEVICE == "cuda" else None
        error = getattr(self._library, name)(ctypes.byref(arguments), ctypes.c_void_p(stream))
        if error:
            raise RuntimeError(f"{name} returned CUDA error {error}")

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> None:
        """q, k [B, T, H * Dk], v and out [B, T, H * Dv], lse float32 [B, H, T]; writes out and lse."""
        pointers = (tensor.data_ptr() for tensor in (q, k, v, out, lse))
        self._call("tfgen_blocksparse_forward_cuda", _Forward(self._shape(q, v), self._rows, *pointers))

    def backward(self, *tensors: torch.Tensor) -> None:
        """q, k, v, out, dout, lse, delta, dq, dk, dv; writes delta (float32 [B, H, T]), dq, dk and dv."""
        shape = self._shape(tensors[0], tensors[2])
        pointers = (tensor.data_ptr() for tensor in tensors)
        self._call("tfgen_blocksparse_backward_cuda", _Backward(shape, self._rows, self._columns, *pointers))
