"""Recorded noise schedules, coefficient tables and respacings."""

from __future__ import annotations

import re

from tests.parity.harness import Case, checker
from tfgen.systems.diffusion import noise_schedules
from tfgen.systems.diffusion.process import LossType, MeanType, Process, VarianceType
from tfgen.systems.diffusion.respacing import kept_steps, respaced_betas

TABLE, PRODUCT, RESPACED = 1e-12, 1e-10, 1e-10  # relative


def process_of(betas, rescale_timesteps: bool = False) -> Process:
    """A process of which the tables alone matter."""
    return Process.create(betas, MeanType.EPSILON, VarianceType.FIXED_SMALL, LossType.MSE, rescale_timesteps)


@checker("diffusion", "diffusion_arrays*.npz")
def check_tables(case: Case) -> None:
    case.json("config")  # names of the arrays, which the file has as well
    for full in case.matching("*/betas_full"):
        prefix = full.removesuffix("betas_full")
        name, steps = re.fullmatch(r"([a-z]+)_(\d+)/", prefix).groups()
        process = process_of(noise_schedules.betas(name, int(steps)))
        case.close(full, process.betas, TABLE, relative=True)
        index = case[f"{prefix}index"]
        for array in case.matching(f"{prefix}*"):
            table = array.removeprefix(prefix)
            if table not in ("betas_full", "index"):
                # The end of the cosine schedule multiplies the rounding of a thousand factors up.
                tolerance = TABLE if table in ("betas", "log_betas") else PRODUCT
                case.close(array, getattr(process, table)[index], tolerance, relative=True)


@checker("diffusion", "respace*.npz")
def check_respacing(case: Case) -> None:
    config = case.json("config")
    for item in config["cases"]:
        prefix, steps, text = item["id"], item["num_timesteps"], item["string"]
        kept = kept_steps(steps, text)
        case.equal(f"{prefix}/steps", kept)
        case.equal(f"{prefix}: number of steps", len(kept), expected=item["n"])
        if f"{prefix}/betas" not in case:  # one step, which no process can have
            case.equal(f"{prefix}: refused", refuses(steps, text, item["schedule"]), expected=True)
            continue
        base = noise_schedules.betas(item["schedule"], steps)
        case.close(f"{prefix}/betas", respaced_betas(base, kept), RESPACED, relative=True)
        case.equal(f"{prefix}/timestep_map", process_of(base).respaced(text).timestep_map)
    for item in config["errors"]:
        text, steps = item["string"], item["num_timesteps"]
        case.equal(f"{text!r} of {steps}: refused", refuses(steps, text, "cosine"), expected=True)


def refuses(steps: int, text: str, schedule: str) -> bool:
    try:
        process_of(noise_schedules.betas(schedule, steps)).respaced(text)
    except ValueError:
        return True
    return False
