"""What the losses cost, alone and in a training step, and what views cost, side by side."""

from __future__ import annotations

import itertools
import platform
import random
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats
from torch import Tensor, nn
from torchvision.ops import MLP

from solo_mim import host
from solo_mim.backbones import backbone_factory
from solo_mim.data import SSLDataModule
from solo_mim.data import photo_patches as patches
from solo_mim.data.imagenet100 import smaller
from solo_mim.data.transforms import normalise, parse_augmentations
from solo_mim.errors import is_out_of_memory
from solo_mim.evaluation.plots import panels
from solo_mim.evaluation.report import markdown_table
from solo_mim.host.pipelines import host_transform
from solo_mim.installed import CONFIG_FOLDER, present
from solo_mim.losses import explicit_mim_loss_func, rivals
from solo_mim.runs.files import read_yaml, write, write_json
from solo_mim.runs.identity import commit, versions

OURS = "explicit_mim"
DATA_PIPELINES = ["symmetric", "symmetric_weak", "asymmetric"]
TRIVIAL = "mean square"  # the loss that costs nothing
Step = Callable[[], object]
# A measurement is of as many calls as take this long: a clock's tick and a call's overhead are
# then below a percent.
SHORTEST = 2e-3  # seconds
SPREAD = (0.1, 0.9)  # quantiles of the repeats that the interval shows
PRECISIONS = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def losses(dim: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Name -> loss of two views, N x `dim` each; the host's with its defaults, ours with ours."""
    corinfomax = rivals.CorInfoMaxLoss(dim)
    return {
        OURS: lambda a, b: explicit_mim_loss_func(a, b),
        f"{OURS} two_view": lambda a, b: explicit_mim_loss_func(a, b, reading="two_view"),
        **host.LOSSES,
        "corinfomax": lambda a, b: corinfomax.to(a.device)(a, b).loss,
        "frossl": lambda a, b: rivals.frossl_loss_func((a, b)).loss,
        "lejepa": lambda a, b: rivals.lejepa_loss_func((a, b)).loss,
        "mec": lambda a, b: rivals.mec_loss_func((a, b), (a, b), inverse_lambda=float(len(a))),
        "visreg": lambda a, b: rivals.visreg_loss_func((a, b)).loss,
    }


def _views(samples: int, dim: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, *noise = torch.randn(3, samples, dim, generator=generator)
    return [(image + 0.5 * n).to(device).requires_grad_() for n in noise]


def _products(samples: int, dim: int, device: torch.device) -> Step:
    """The matrix products that two covariances of N x D features and their gradients cannot do
    without, on the smaller side."""
    rows = torch.randn(samples, dim, device=device)
    rows = rows if samples >= dim else rows.T.contiguous()
    square = rows.T @ rows

    def step() -> None:
        for _ in range(2):
            torch.mm(rows.T, rows)
            torch.mm(rows, square)

    return step


def autocast(device: torch.device, precision: str) -> Any:
    """torch's context of one of PRECISIONS, as lightning has it."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "32-true")


def _step(
    loss: Callable[[Tensor, Tensor], Tensor], views: list[Tensor], precision: str = "32-true"
) -> Step:
    def step() -> None:
        for view in views:
            view.grad = None
        with autocast(views[0].device, precision):
            found = loss(*views)
        found.backward()

    return step


def _seconds(step: Step, calls: int, device: torch.device) -> float:
    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return timeit.timeit(step, timer=clock, number=calls) / calls


def peak_memory(step: Step, device: torch.device) -> float:
    """MiB that one call holds at most beyond what was there before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(changes, initial=0)) / 2**20


def interleaved(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, list]:
    """Seconds of a call, `repeats` of each step.

    The steps take turns, in an order drawn anew for each repeat, so that whatever else the machine
    does meets all of them.
    """
    calls = {}
    for name, step in steps.items():
        step()
        calls[name] = max(1, round(SHORTEST / _seconds(step, 3, device)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for _ in range(repeats):
        for name in order.sample(list(steps), len(steps)):
            times[name].append(_seconds(steps[name], calls[name], device))
    return times


def measure(
    samples: int, dim: int, repeats: int, device: torch.device, precision: str = "32-true"
) -> list[dict[str, Any]]:
    """One row per loss: median seconds with an interval, MiB, and ratios.

    Ratios are medians over the repeats of ratios within a repeat.
    """
    views = _views(samples, dim, device)
    steps = {name: _step(loss, views, precision) for name, loss in losses(dim).items()}
    steps["matrix products"] = _products(samples, dim, device)
    times = interleaved(steps, repeats, device)
    return [
        {
            "N": samples,
            "D": dim,
            "precision": precision,
            "loss": name,
            "ms": 1e3 * statistics.median(times[name]),
            "ms_low": 1e3 * np.quantile(times[name], SPREAD[0]),
            "ms_high": 1e3 * np.quantile(times[name], SPREAD[1]),
            "explicit_mim_over_this": statistics.median(map(truediv, times[OURS], times[name])),
            "peak_mib": peak_memory(step, device),
        }
        for name, step in steps.items()
    ]


def median_ratio(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Median of the ratios within repeats, and its 95 % bootstrap interval."""
    ratios = np.asarray(over) / np.asarray(under)
    middle = float(np.median(ratios))
    if len(ratios) < 2 or np.ptp(ratios) == 0:
        return middle, middle, middle
    interval = stats.bootstrap(
        (ratios,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return middle, float(interval.low), float(interval.high)


def network_of(backbone: str, crop_size: int, dim: int, device: torch.device) -> nn.Module:
    """A backbone with a projector of 512-512-D, random weights of one seed, channels last."""
    cfg = OmegaConf.create(
        {"backbone": {"name": backbone}, "augmentations": [{"crop_size": crop_size}], "data": {}}
    )
    torch.manual_seed(0)
    features: Any = backbone_factory(cfg)()
    projector = MLP(features.num_features, [512, 512, dim], norm_layer=nn.BatchNorm1d)
    network = nn.Sequential(features, projector)
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class TrainingStep:
    """Views through a network, their loss, gradients and an AdamW update, in one of PRECISIONS."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        self.network, self.precision = network, precision
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        self.device = next(network.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "16-mixed")

    def __call__(self, loss: Callable[[Tensor, Tensor], Tensor], views: list[Tensor]) -> None:
        self.optimizer.zero_grad()
        with autocast(self.device, self.precision):
            found = loss(*(self.network(x) for x in views))
        self.scaler.scale(found).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def measure_steps(
    backbone: str,
    samples: int,
    dim: int,
    repeats: int,
    device: torch.device,
    crop_size: int = 32,
    precision: str = "32-true",
    of: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row per loss: the time of a whole training step over that with a mean square for a loss.

    Two views of N images through the backbone and a projector of 512-512-D, the loss, gradients and
    an AdamW update. `over_trivial`, `low` and `high` are those of `median_ratio`; `peak_mib` is
    what a step holds at most beside weights and optimiser.

    Args:
        of: names of losses; all of them where empty.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (samples, 3, crop_size, crop_size)
    images = [torch.randn(shape, generator=generator).to(device) for _ in range(2)]
    images = [x.contiguous(memory_format=torch.channels_last) for x in images]
    train = TrainingStep(network_of(backbone, crop_size, dim, device), precision)
    known = losses(dim)
    chosen: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        TRIVIAL: lambda a, b: a.square().mean() + b.square().mean(),
        **{name: known[name] for name in of or known},
    }
    steps = {name: partial(train, loss, images) for name, loss in chosen.items()}
    times = interleaved(dict(steps), repeats, device)
    rows = []
    for name, step in steps.items():
        ratio, low, high = median_ratio(times[name], times[TRIVIAL])
        rows.append(
            {
                "backbone": backbone,
                "crop_size": crop_size,
                "N": samples,
                "D": dim,
                "precision": precision,
                "loss": name,
                "ms": 1e3 * statistics.median(times[name]),
                "over_trivial": ratio,
                "low": low,
                "high": high,
                "peak_mib": peak_memory(step, device),
            }
        )
    return rows


def _photographs(crop_size: int) -> list[Any]:
    """Patches for crops of up to 32 pixels, whole photographs for larger ones: H x W x 3 each."""
    if crop_size <= 32:
        return list(patches.photo_patches()[0].images[::20])
    return [patches.photograph(name) for name in patches.PHOTOGRAPHS]


def _shipped(name: str) -> list[dict[str, Any]]:
    return read_yaml(CONFIG_FOLDER / "augmentations" / f"{name}.yaml")


def _compared(
    ours: Step, other: Step, views: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Views per second of two steps of so many views, and by how much ours are faster."""
    times = interleaved({"ours": ours, "host": other}, repeats, device)
    ratio, low, high = median_ratio(times["host"], times["ours"])
    speeds = {f"{w}_views_per_second": views / statistics.median(s) for w, s in times.items()}
    return {**speeds, "faster": ratio, "low": low, "high": high}


def measure_data(crop_size: int, repeats: int) -> list[dict[str, Any]]:
    """One row per augmentation file: views per second of ours and of the host's pipeline.

    On photographs in memory, in this process: patches of 32 pixels, or whole ones for larger crops.
    `faster`, `low` and `high` are those of `median_ratio`.
    """
    images = [Image.fromarray(array) for array in _photographs(crop_size)]
    rows = []
    for name in DATA_PIPELINES:
        pipeline = {**_shipped(name)[-1], "crop_size": crop_size}
        (augment,) = parse_augmentations([pipeline], patches.MEAN, patches.STD)
        theirs = host_transform(pipeline, "cifar10" if crop_size <= 32 else "imagenet")
        rng = random.Random(0)

        def ours(augment: Any = augment, rng: random.Random = rng) -> Tensor:
            views = [augment(image, rng) for image in images]
            return normalise(views, augment.mean, augment.std)

        def hosts(theirs: Callable[..., Tensor] = theirs) -> Tensor:
            return torch.stack([theirs(image) for image in images])

        found = _compared(ours, hosts, len(images), repeats, torch.device("cpu"))
        of = {"augmentations": name, "crop_size": crop_size, "beside": "the host"}
        rows.append({**of, **found})
    return rows


_SMALL = 256  # pixels of the shorter side of files that `solo-mim prepare --size` makes


def measure_loaders(crop_size: int, repeats: int, workers: int) -> list[dict[str, Any]]:
    """A row for each other way from JPEG files to views: views per second of Pillow's and of its.

    Patches of 32 pixels, held in memory by one of the ways, or whole photographs for larger crops,
    also from smaller files, read and decoded by ``workers`` processes, or DALI's threads; by this
    process and one thread for 0. What can takes the GPU where there is one, and the network that
    would wait for it is not there.
    """
    large = crop_size > 32
    images = [Image.fromarray(array) for array in _photographs(crop_size) * (4 if large else 1)]
    name = DATA_PIPELINES[0]
    pipeline = {**_shipped(name)[0], "crop_size": crop_size}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        files, small = Path(folder) / "files", Path(folder) / "small"
        files.mkdir()
        small.mkdir()
        for number, image in enumerate(images):
            image.save(files / f"{number}.jpg", quality=90)
            if large:
                (small / f"{number}.jpg").write_bytes(smaller(image, _SMALL))

        def epoch(root: Path, format: str) -> Step:
            data = {"dataset": "custom", "train_path": str(root), "no_labels": True}
            cfg = {
                "data": {**data, "format": format, "num_workers": workers},
                "augmentations": [pipeline],
                "optimizer": {"batch_size": len(patches.PHOTOGRAPHS) if large else 128},
            }
            loader = SSLDataModule(cfg).train_dataloader()
            return lambda: [None for _ in loader]

        ways = {"DALI": (files, "dali")} if present("nvidia.dali") else {}
        if large:
            ways = {f"Pillow, {_SMALL} px": (small, "image_folder"), **ways}
            ways |= {f"DALI, {_SMALL} px": (small, "dali")} if "DALI" in ways else {}
        else:
            ways = {"torch": (files, "tensor"), **ways}
        views = len(images) * pipeline["num_crops"]
        of = {"augmentations": f"{name}, JPEG files", "crop_size": crop_size}
        return [
            {**of, "beside": f"{beside}, {'cpu' if 'Pillow' in beside else device.type}"}
            | _compared(epoch(files, "image_folder"), epoch(*way), views, repeats, device)
            for beside, way in ways.items()
        ]


def _interval(row: dict[str, Any], key: str, digits: int, prefix: str = "") -> str:
    """`1.2 (1.1 to 1.3)`."""
    of = (key, f"{prefix}low", f"{prefix}high")
    value, low, high = (f"{row[name]:.{digits}f}" for name in of)
    return f"{value} ({low} to {high})"


def data_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per augmentation and crop size."""
    heads = ["augmentations", "crop", "views/s", "beside", "its views/s", "times as fast (95 %)"]
    cells = []
    for row in rows:
        ours, theirs = (f"{row[f'{who}_views_per_second']:,.0f}" for who in ("ours", "host"))
        of = [row["augmentations"], str(row["crop_size"]), ours, row["beside"], theirs]
        cells.append([*of, _interval(row, "faster", 2)])
    return markdown_table(heads, cells, ("augmentations", "beside"))


def step_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per network, size and loss, most costly first."""
    keys = ("backbone", "crop_size", "precision", "N", "D")
    ordered = sorted(rows, key=lambda r: (*(r[key] for key in keys), -r["over_trivial"]))
    cells = [
        [
            *(str(row[key]) for key in (*keys, "loss")),
            f"{row['ms']:.1f}",
            _interval(row, "over_trivial", 3),
            f"{row['peak_mib']:,.0f}",
        ]
        for row in ordered
    ]
    of_sizes = ["backbone", "crop", "precision", "N", "D", "loss"]
    heads = [*of_sizes, "step, ms", f"over {TRIVIAL} (95 %)", "MiB"]
    return markdown_table(heads, cells, ("backbone", "precision", "loss"))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per N, D and precision: `explicit_mim` as a multiple of each."""
    names = list(dict.fromkeys(row["loss"] for row in rows if row["loss"] != OURS))
    keys, cells = ("N", "D", "precision"), []
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        found = {row["loss"]: row for row in rows if tuple(row[k] for k in keys) == key}
        ours = [_interval(found[OURS], "ms", 2, "ms_"), f"{found[OURS]['peak_mib']:.1f}"]
        ratios = [f"{found[name]['explicit_mim_over_this']:.2f}" for name in names]
        cells.append([*map(str, key), *ours, *ratios])
    heads = [*keys, f"{OURS}, ms", "MiB", *(f"/ {name}" for name in names)]
    return markdown_table(heads, cells, ("precision",))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per N: time against D, both logarithmic, with the interval as a band; of the first
    precision."""
    frame = pd.DataFrame(rows).sort_values("D", kind="stable")
    sizes = frame[frame["precision"] == rows[0]["precision"]].groupby("N")
    figure, axes = panels(len(sizes), 5 * len(sizes), 4, sharey=True)
    for axis, (size, of_size) in zip(axes, sizes, strict=True):
        for name, of in of_size.groupby("loss", sort=False):
            style: dict[str, Any] = {"linewidth": 3 if name == OURS else 1}
            if name == "matrix products":
                style |= {"linestyle": ":", "color": "black"}
            axis.plot(of["D"], of["ms"], label=name, **style)
            axis.fill_between(of["D"], of["ms_low"], of["ms_high"], alpha=0.15)
        axis.set(xscale="log", yscale="log", title=f"N = {size}", xlabel="D")
        axis.set_xticks(of["D"], of["D"].astype(str))
    axes[0].set_ylabel("forward and backward, ms")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


class Benchmark:
    """One measurement: its rows, a table of them, and the files that it leaves.

    Args:
        what: loss, step or data.
        threads: of torch; None leaves them as they are.
        device: of losses and steps; None takes the GPU where there is one.

    Raises:
        RuntimeError, AssertionError: torch's, where there is no such device.
    """

    def __init__(self, what: str, repeats: int, threads: int | None, device: str | None) -> None:
        if threads:
            torch.set_num_threads(threads)
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        self.what, self.repeats, self.threads = what, repeats, torch.get_num_threads()
        self.device = torch.device("cpu" if what == "data" else device or usual)
        torch.empty(1, device=self.device)
        self.rows: list[dict[str, Any]] = []
        self.text = ""

    def run(
        self,
        crop_sizes: list[int],
        sizes: list[int],
        dims: list[int],
        precisions: list[str],
        backbones: list[str],
        of: Sequence[str],
    ) -> None:
        """Measures views, losses, or steps of backbones with them, and prints their table; a step
        that does not fit into memory is said and left out."""
        if self.what == "data":
            for crop_size in crop_sizes:
                workers = self.threads if self.threads > 1 else 0
                self.rows += measure_data(crop_size, self.repeats)
                self.rows += measure_loaders(crop_size, self.repeats, workers)
        for size in itertools.product(sizes, dims, precisions) if self.what != "data" else ():
            said = "N = {}, D = {}, {}".format(*size)
            if self.what == "loss":
                self.rows += measure(*size[:2], self.repeats, self.device, size[2])
                print(f"{said} measured", flush=True)
                continue
            for backbone, crop_size in itertools.product(backbones, crop_sizes):
                networks = (backbone, *size[:2], self.repeats, self.device, crop_size, size[2], of)
                try:
                    self.rows += measure_steps(*networks)
                    what = "measured"
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    what = "does not fit into memory"
                print(f"{backbone}, {crop_size} px, {said}: {what}", flush=True)
        self.text = {"data": data_table, "step": step_table, "loss": table}[self.what](self.rows)
        print(self.text)

    def write(self, output: Path) -> list[str]:
        """Names of the files that it has written into a folder."""
        output.mkdir(parents=True, exist_ok=True)
        on_gpu = self.device.type == "cuda"
        machine = platform.processor() or platform.machine()
        content = {
            "versions": versions(),
            "commit": commit(),
            "machine": torch.cuda.get_device_name(self.device) if on_gpu else machine,
            "threads": self.threads,
            "repeats": self.repeats,
            "rows": self.rows,
        }
        names = [f"{self.what}.json", f"{self.what}.md"]
        write_json(output / names[0], content)
        write(output / names[1], self.text + "\n")
        if self.what == "loss":
            names.append("loss.png")
            plot(self.rows, output / names[2])
        return names
