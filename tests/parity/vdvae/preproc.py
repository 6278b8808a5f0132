"""Recorded inputs and targets of every data set."""

from __future__ import annotations

import numpy as np

from tests.parity.harness import Case, checker
from tfgen.systems.vdvae.preprocess import PREPROCESSING

TOLERANCE = 1e-6
_IMAGES = {"": "x_uint8", "_all": "all_values_uint8"}  # by the end of the recorded name


@checker("vdvae", "preproc*.npz")
def check(case: Case) -> None:
    case.json("config")  # says nothing that the arrays do not
    for dataset, preprocessing in PREPROCESSING.items():
        for ending, images in _IMAGES.items():
            if f"{dataset}_input{ending}" in case:
                inputs, targets = preprocessing.input_and_target(case[images])
                case.close(f"{dataset}_input{ending}", inputs, TOLERANCE)
                case.close(f"{dataset}_target{ending}", targets, TOLERANCE)
    # The original keeps images of [0, 1] and shows 255 x, truncated; here sources hold bytes and show them.
    for ending, images in _IMAGES.items():
        for name in case.matching(f"*_viz_original{ending}"):
            case.equal(name, np.asarray(case[images]))
