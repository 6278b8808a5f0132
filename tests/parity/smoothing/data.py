"""The recorded scales of pixels, preparation of faces and split of CelebA."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from PIL import Image

from tests.parity.harness import Case, checker
from tests.parity.smoothing.likelihood import channels_last, within
from tfgen.data import celeba
from tfgen.systems.smoothing import data

PIXELS = 1e-6
LOGITS = (1e-4, 1e-6)  # relative, absolute; float32 has few digits of 1 - p at the ends
NEGATIVE_LOG_LIKELIHOOD = 1e-5  # relative
WHOLE_LISTS = 5000  # longer lists of indices are recorded in part


@checker("smoothing", "data*.npz")
def check(case: Case) -> None:
    case.json("config")
    check_scales(case)
    check_logits(case)
    check_faces(case)
    for name in case.matching("celeba_split_*/sizes"):
        check_split(case, name.partition("/")[0])


def check_scales(case: Case) -> None:
    scaled = data.scaled(case["u8"])
    case.close("scaled", scaled, PIXELS)
    case.close("unscaled", data.unscaled(scaled), PIXELS)
    case.close("inv_out", data.unscaled(case["inv_in"]), PIXELS)
    case.equal("png_u8", data.to_uint8(case["inv_in"]))


def check_logits(case: Case) -> None:
    logits = data.to_logits(tf.constant(case["logit_in"]))
    within(case, "logit_out", logits.numpy(), *LOGITS)
    recorded = tf.constant(case["logit_out"])
    case.close("logit_nll", data.log_volume(recorded), NEGATIVE_LOG_LIKELIHOOD, relative=True)
    case.close("sigmoid_transform_out", data.unscaled(data.from_logits(recorded)), PIXELS)


def check_faces(case: Case) -> None:
    image = Image.fromarray(case["celeba_src_u8_HWC"])
    case.equal("celeba_crop_box", celeba.crop_box(image.width, image.height))
    prepared = celeba.prepare(image)
    case.equal("celeba_resized_u8_HWC", prepared)
    face = channels_last(case["celeba_tensor_CHW"][np.newaxis])
    case.close("celeba_tensor_CHW", data.scaled(prepared[np.newaxis]), PIXELS, expected=face)


def check_split(case: Case, name: str) -> None:
    count = int(name.rpartition("_")[2])
    parts = celeba.split(count)
    case.equal(f"{name}/sizes", [len(part) for part in parts])
    for part, indices in zip(("train", "test"), parts, strict=True):
        recorded = case[f"{name}/{part}"]
        case.equal(f"{name}/{part}", indices if count <= WHOLE_LISTS else indices[: len(recorded)])
