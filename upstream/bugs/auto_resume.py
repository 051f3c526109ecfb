"""The second seed of a run, or another loss weight, resumes the first run's checkpoint.

    PYTHONPATH=CHECKOUT python auto_resume.py

`AutoResumer.SHOULD_MATCH` has neither the seed nor `method_kwargs`: under `auto_resume.enabled`,
which the files of `scripts/pretrain` set, a sweep over either within 36 hours continues the first
run (a finished one: trains nothing) and is taken for a result of its own.
"""

import json
import sys
import tempfile
from pathlib import Path

from omegaconf import OmegaConf
from solo.utils.auto_resumer import AutoResumer


def settings(seed, sim_loss_weight):
    return OmegaConf.create(
        {
            "name": "vicreg-cifar10",
            "method": "vicreg",
            "seed": seed,
            "method_kwargs": {"proj_output_dim": 2048, "sim_loss_weight": sim_loss_weight},
            "max_epochs": 1000,
        }
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "vicreg" / "first"
        run.mkdir(parents=True)
        (run / "first-ep=999.ckpt").touch()
        (run / "args.json").write_text(json.dumps(OmegaConf.to_container(settings(5, 25.0))))
        resumed = {
            what: AutoResumer(Path(name)).find_checkpoint(settings(*other))[0] is not None
            for what, other in {
                "the same run": (5, 25.0),
                "another seed": (6, 25.0),
                "another loss weight": (5, 10.0),
            }.items()
        }
    print(
        f"seed 5 and weight 25.0 are continued by: {', '.join(k for k, v in resumed.items() if v)}"
    )
    sys.exit(0 if list(resumed.values()) == [True, False, False] else 1)
