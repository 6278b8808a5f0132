"""Recorded flags of the original's programs: ours have the same names and defaults."""

from __future__ import annotations

from tests.parity.harness import Case, checker
from tfgen.flagfields import flag_fields
from tfgen.settings import RunSettings
from tfgen.systems.diffusion.config import Config
from tfgen.systems.diffusion.evaluation import EvaluateOptions
from tfgen.systems.diffusion.sampling import SampleOptions

_TYPES = {"str": str, "int": int, "float": float, "str2bool": bool}
# Flags that a command of ours has under its own name, the same for all systems.
_ELSEWHERE = {
    "data_dir": "of every command; its default is the folder `data`",
    "num_samples": "--count of tfgen.sample, --images of tfgen.evaluate",
    "model_path": "--run",
}
_SAMPLING = {"image_sample": SampleOptions, "super_res_sample": SampleOptions, "image_nll": EvaluateOptions}


@checker("diffusion", "cli_defaults*.json")
def check(case: Case) -> None:
    config = flag_fields(Config)
    for program in case.names:
        for option, kind, default in case[program]:
            name = option.removeprefix("--")
            if name in _ELSEWHERE:
                continue
            fields = config
            if program in _SAMPLING:
                if name == "batch_size":  # of the forward passes: --sample_batch, and --batch_size of tfgen.evaluate
                    continue
                fields = config | flag_fields(_SAMPLING[program])
            field = fields[name]
            case.equal(f"{program} {option}: type", field.type.__name__, expected=_TYPES[kind].__name__)
            # `timestep_respacing` of sampling chooses other steps than the run's; its default is the same.
            case.equal(f"{program} {option}: default", str(field.default), expected=str(default))
    case.equal("data_dir", flag_fields(RunSettings)["data_dir"].type.__name__, expected="str")
