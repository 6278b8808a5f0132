"""Recorded images of ImageNet at 128x128: the JPEG decoder, TensorFlow 1's bilinear filter, the crop and the label."""

from __future__ import annotations

import numpy as np

from tests.parity.harness import Case, checker
from tfgen.data import imagenet128

TOLERANCE = 1e-4  # of levels in [0, 255], whose float32 neighbours are 1.5e-5 apart


@checker("ebm", "imagenet128_preproc*.npz")
def check(case: Case) -> None:
    for name in case.matching("*/jpeg"):
        prefix = name.removesuffix("jpeg")
        case.equal(f"{prefix}decoded_u8", imagenet128.decoded(case[name].tobytes()))
        side = len(case[f"{prefix}out_0_255"])
        found = imagenet128.resized_crop(case[f"{prefix}decoded_u8"], side)
        case.close(f"{prefix}out_0_255", found, TOLERANCE)
        labels = [imagenet128.class_of(label) for label in case[f"{prefix}record_label"].ravel()]
        case.equal(f"{prefix}onehot_index", np.reshape(labels, case[f"{prefix}onehot_index"].shape))
    case.leave_unread("config", "what the recording was made with, in words")
