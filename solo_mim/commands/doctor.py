"""`solo-mim doctor`: one screen on what is installed and what is missing."""

from __future__ import annotations

import argparse
import os
import platform

from solo_mim import installed
from solo_mim.errors import install_extra

OPTIONAL = {
    "tensorboard": ("tensorboard", "logging to TensorBoard"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "umap": ("umap", "UMAP pictures"),
    "h5py": ("h5", "H5 data sets"),
    "nvidia.dali": ("dali", "GPU data loading"),
    "submitit": ("slurm", "the ImageNet-100 campaign on SLURM"),
}


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="solo-mim doctor",
        description="Tell what is installed: host, versions, devices, optional parts.",
    )
    parser.parse_args(arguments)
    import torch

    from solo_mim.runs.identity import versions

    print(
        f"host      solo-learn {installed.host_version()}, generation "
        f"'{installed.host_generation()}', {installed.host_location()}"
    )
    print("versions  " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    print(
        f"system    {platform.platform()}, {os.cpu_count()} CPU cores, "
        f"{torch.get_num_threads()} threads"
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            print(f"device    cuda:{index} {device.name}, {device.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        print("device    mps")
    else:
        print("device    cpu only")
    for module, (extra, purpose) in OPTIONAL.items():
        state = "yes" if installed.present(module) else f"no   ({install_extra(extra)})"
        print(f"optional  {module:<13}{purpose:<30}{state}")
    print(f"configs   {installed.CONFIG_FOLDER}")
