"""GPUs by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Of a data sheet: dense matrix products in 10^12 operations a second, memory in GiB."""

    half: float  # in 16 bits, summed in 32
    single: float  # in 32 bits as torch runs convolutions by default, TF32 where the GPU has it
    memory: int


GPUS = {
    "T4": Gpu(65, 8.1, 15),
    "V100": Gpu(125, 15.7, 32),
    "RTX2080Ti": Gpu(53.8, 13.4, 11),
    "RTX3090": Gpu(71, 35.6, 24),
    "RTX4090": Gpu(165, 82.6, 24),
    "A6000": Gpu(155, 77.4, 48),
    "L4": Gpu(121, 60, 23),
    "A100": Gpu(312, 156, 80),
    "A100-40": Gpu(312, 156, 40),
    "H100": Gpu(989, 494, 80),
    "H200": Gpu(989, 494, 141),
}
# By these counts, of Barlow Twins in solo-learn's README: ResNet-18, 20 epochs of ImageNet-100 in
# 43 minutes on two RTX 2080 Ti with DALI; 5,097 MB on each without.
UTILISATION = 0.2
