"""What the docs lack because no GPU was at hand, measured in one call of bounded time.

    python scripts/gpu_evidence.py [--minutes 25] [--data FOLDER] [--output DIR] [--device cpu]
    python scripts/gpu_evidence.py --pack DIR --data FOLDER

FOLDER holds the images of CIFAR-10: train/CLASS/* and test/CLASS/*, or torchvision's
cifar-10-batches-py. Stages, in order of worth:

tests     `pytest -m gpu`
stream    whether a loss waits for the GPU in a step, and what torch.compile makes of explicit MIM
losses    time of the losses by size and precision
steps     time of whole training steps over one with a mean square for a loss
loaders   images a second of each way to the views, and what share of a step they leave idle
plan      memory and speed that `solo-mim plan` predicts, beside those of training
training  five methods under one budget, which the remaining minutes dictate, and their report

Each has its share of the time, writes STAGE.json and the page gpu.md before the next begins, and is
passed over where it is done already or the time is short. One that fails is recorded with its cause
and stops no other. The folder has no checkpoints, for sending it back; those of training are in
DIR-work, which can go. No network is needed: `--pack` collects, where there is one, what a machine
without it lacks beside torch and the usual packages, and `--packed` takes that folder.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # not installed where there is no network

WHEELS = ("hydra-core", "omegaconf", "antlr4-python3-runtime", "solo-learn")
IMAGES = "cifar10.tar.gz"
MOST = 60 * 2**20  # bytes of a pack
METHODS = ("explicit_mim", "vicreg", "simclr", "barlow_twins", "byol")
LOSSES = ("explicit_mim", "vicreg", "barlow_twins", "simclr")
MIXED = ("16-mixed", "bf16-mixed", "32-true")


class Failed(Exception):
    """A stage cannot go on; the message is the cause."""


@dataclass
class Job:
    """Where a call measures, on what, and until when."""

    output: Path
    device: str
    data: Path | None
    end: float  # of time.monotonic
    environment: dict[str, str]

    @property
    def small(self) -> bool:
        """On a CPU the stages are gone through in small."""
        return self.device == "cpu"

    @property
    def work(self) -> Path:
        return self.output.with_name(f"{self.output.name}-work")

    def left(self) -> float:
        return self.end - time.monotonic()

    def call(self, name: str, *command: str) -> str:
        """What a command prints, also kept in logs/NAME.log.

        Raises:
            Failed: it ends with an error, or the stage's time is up.
        """
        log = self.output / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.left() < 1:
            raise Failed("no time was left")
        with log.open("w") as file:
            print("$", *command, file=file, flush=True)
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=self.environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=self.left(),
                ).returncode
            except subprocess.TimeoutExpired:
                raise Failed(f"{name}: its time was up; logs/{log.name} has what it said") from None
        said = log.read_text(errors="replace")
        if code:
            last = said.strip().splitlines()[-1]
            raise Failed(f"{name}: ended with {code}: {last[:300]} (logs/{log.name})")
        return said

    def solo_mim(self, name: str, *arguments: str) -> str:
        return self.call(name, sys.executable, "-m", "solo_mim", *arguments)

    def inner(self, name: str) -> Any:
        """What a function of INNER measures, in a process of its own."""
        here = str(Path(__file__).resolve())
        given = ["--device", self.device, *(["--data", str(self.data)] if self.data else [])]
        said = self.call(name, sys.executable, here, "--inner", name, *given)
        return json.loads(said.strip().splitlines()[-1])

    def training(self) -> list[str]:
        """Overrides of every training here."""
        on = ["accelerator=cpu"] if self.small else ["accelerator=gpu", "precision=16-mixed"]
        return [*images_in(self.data), "data.format=tensor", *on, "progress_bar=false"]


PARTS = {"train": "train", "val": "test"}


def images_in(data: Path | None) -> list[str]:
    """Overrides that choose the images."""
    if data is None:
        raise Failed("no images: give --data FOLDER, or --packed")
    if (data / "cifar-10-batches-py").is_dir():
        return ["data=cifar10", f"data.train_path={data}"]
    return [
        *("data=image_folder", "augmentations=symmetric"),
        *(f"data.{key}_path={data / part}" for key, part in PARTS.items()),
    ]


def table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    """Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


# tests


def tests(job: Job) -> dict[str, Any]:
    """`pytest -m gpu`; a test that fails is a finding and no failure of the stage."""
    report = job.output / "tests.xml"
    options = ["-o", "addopts=--import-mode=importlib --strict-markers", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-m", "gpu", *options]
    failure = None
    try:
        job.call("tests", *command, f"--junitxml={report}", "tests")
    except Failed as error:
        failure = error
    if not report.exists():
        raise failure or Failed("pytest left no report")
    cases = list(ElementTree.parse(report).iter("testcase"))
    kinds: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in cases:
        children = {child.tag for child in case}
        kind = "failed" if children & {"failure", "error"} else "passed"
        kinds["skipped" if "skipped" in children else kind].append(
            f"{case.get('classname')}::{case.get('name')}"
        )
    return {**{kind: len(names) for kind, names in kinds.items()}, "names": kinds["failed"]}


def tests_lines(found: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{found[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
    return [f"`pytest -m gpu`: {counts}.", *(f"- failed: `{name}`" for name in found["names"])]


# stream


def stream(device: str) -> dict[str, Any]:
    """Of each loss, what makes a step of it wait; of explicit MIM, what torch.compile does."""
    import torch

    from solo_mim.benchmarks import interleaved, losses, median_ratio
    from solo_mim.losses import explicit_mim_loss_func

    place = torch.device(device)
    size = (64, 64) if device == "cpu" else (256, 512)
    views = [torch.randn(size, device=place, requires_grad=True) for _ in range(2)]

    def step(loss: Callable[..., Any]) -> Callable[[], None]:
        def run() -> None:
            for view in views:
                view.grad = None
            loss(*views).backward()

        return run

    waits = {}
    for name, loss in losses(size[1]).items():
        once = step(loss)
        once()
        if device == "cpu":
            with torch.profiler.profile() as profile:
                once()
            calls = {e.key: e.count for e in profile.key_averages()}
            waits[name] = f"{calls.get('aten::_local_scalar_dense', 0)} values read"
            continue
        torch.cuda.set_sync_debug_mode("error")
        try:
            once()
            waits[name] = "no"
        except RuntimeError as error:
            waits[name] = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    compiled: dict[str, Any] = {}
    try:
        loss = torch.compile(explicit_mim_loss_func)
        apart = (loss(*views) - explicit_mim_loss_func(*views)).abs().item()
        steps = {"eager": step(explicit_mim_loss_func), "compiled": step(loss)}
        times = interleaved(dict(steps), 15, place)
        ratio, low, high = median_ratio(times["compiled"], times["eager"])
        breaks = torch._dynamo.explain(explicit_mim_loss_func)(*views).graph_break_count
        compiled = {"apart": apart, "over_eager": ratio, "low": low, "high": high, "breaks": breaks}
    except Exception as error:  # whatever the compiler raises
        compiled = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return {"N": size[0], "D": size[1], "waits": waits, "compiled": compiled}


def stream_lines(found: dict[str, Any]) -> list[str]:
    compiled = found["compiled"]
    said = (
        f"fails: {compiled['failed']}"
        if "failed" in compiled
        else f"{compiled['over_eager']:.2f} ({compiled['low']:.2f} to {compiled['high']:.2f}) "
        f"of the eager time, {compiled['breaks']} graph breaks, values {compiled['apart']:.1e} "
        "apart"
    )
    rows = [[name, why] for name, why in found["waits"].items()]
    head = f"One step, N = {found['N']}, D = {found['D']}:"
    return [head, "", *table(["loss", "waits for the device"], rows), "", f"torch.compile: {said}."]


# losses and steps, by `solo-mim bench`


def bench(job: Job, what: str, calls: dict[str, list[str]]) -> dict[str, Any]:
    """One `solo-mim bench` after the other, as many as there is time for."""
    found: dict[str, Any] = {"commands": [], "rows": [], "left_out": []}
    for name, options in calls.items():
        arguments = ["bench", what, "--device", job.device, *options]
        place = job.work / f"{what}-{name}"
        try:
            job.solo_mim(f"{what}-{name}", *arguments, "--output", str(place))
        except Failed as error:
            found["left_out"].append(f"{name}: {error}")
            continue
        found["commands"].append(f"solo-mim {' '.join(arguments)}")
        found["rows"] += json.loads((place / f"{what}.json").read_text())["rows"]
    if not found["rows"]:
        raise Failed("; ".join(found["left_out"]))
    return found


def losses(job: Job) -> dict[str, Any]:
    if job.small:
        return bench(job, "loss", {"small": ["-N", "64", "-D", "128", "--repeats", "5"]})
    sizes = ["-N", "256", "1024", "-D", "128", "512", "2048"]
    return bench(job, "loss", {p: [*sizes, "--precision", p] for p in MIXED[::-1]})


def losses_lines(found: dict[str, Any]) -> list[str]:
    from solo_mim.benchmarks import table as of_losses

    return [*_commands(found), of_losses(found["rows"])]


def steps(job: Job) -> dict[str, Any]:
    chosen = ["--losses", *LOSSES]
    if job.small:
        size = ["-N", "16", "-D", "128", "--backbones", "small_cnn", "--repeats", "3"]
        return bench(job, "step", {"small": [*size, *chosen]})
    calls = {}
    small = ["--backbones", "resnet18", "--crop-sizes", "32"]
    large = ["--backbones", "resnet50", "--crop-sizes", "224", "-N", "256", "-D", "2048"]
    for p in MIXED:
        calls[f"resnet18-{p}"] = [*small, "-N", "256", "-D", "128", "2048", "--precision", p]
        calls[f"resnet50-{p}"] = [*large, "--precision", p, "--repeats", "7"]
    calls["resnet18-1024"] = [*small, "-N", "1024", "-D", "512", "--precision", *MIXED]
    return bench(job, "step", {name: [*options, *chosen] for name, options in calls.items()})


def steps_lines(found: dict[str, Any]) -> list[str]:
    from solo_mim.benchmarks import step_table

    return [*_commands(found), step_table(found["rows"])]


def _commands(found: dict[str, Any]) -> list[str]:
    said = [*found["commands"], *(f"# not measured: {why}" for why in found["left_out"])]
    return ["```", *said, "```", ""]


# loaders


def loaders(device: str, data: Path | None) -> dict[str, Any]:
    """Images a second of each format alone, with a step of ResNet-18, and of the step alone."""
    import torch

    from solo_mim.benchmarks import TrainingStep, network_of
    from solo_mim.benchmarks import losses as known
    from solo_mim.data import SSLDataModule
    from solo_mim.installed import present
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.compose import composed

    place, small = torch.device(device), device == "cpu"
    seconds = 3 if small else 8
    network = network_of("small_cnn" if small else "resnet18", 32, 128, place)
    step = TrainingStep(network, "32-true" if small else "16-mixed")
    loss = known(128)["explicit_mim"]

    def batches(loader: Any) -> Any:
        epoch = 0
        while True:
            loader.sampler.set_epoch(epoch)
            yield from loader
            epoch += 1

    def wait() -> None:
        if not small:
            torch.cuda.synchronize()

    def train(batch: Any) -> None:
        views = [x.to(place, memory_format=torch.channels_last) for x in batch[1]]
        step(loss, views)

    def rate(iterator: Any, use: Callable[[Any], None]) -> float:
        """Images a second, after a few batches to warm up."""
        for _ in range(4):
            use(next(iterator))
        wait()
        images, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            batch = next(iterator)
            use(batch)
            images += len(batch[0])
        wait()
        return images / (time.perf_counter() - started)

    overrides = [*images_in(data), "optimizer.batch_size=256"]
    found: dict[str, Any] = {"workers": 0, "formats": {}}
    formats = ["tensor", "image_folder", "dali"]
    if not present("nvidia.dali") or "data=cifar10" in overrides:
        formats.remove("dali")
    for format in formats:
        recipe = checked(composed("pretrain", [*overrides, f"data.format={format}"]))
        module = SSLDataModule(recipe.plain)
        found["workers"] = module.num_workers
        iterator = batches(module.train_dataloader())
        alone = rate(iterator, lambda batch: None)
        together = rate(iterator, train)
        if "step" not in found:
            batch = next(iterator)
            batch[1] = [x.to(place, memory_format=torch.channels_last) for x in batch[1]]
            found["step"] = rate(itertools.repeat(batch), train)
        found["formats"][format] = {"alone": alone, "with_step": together}
    return found


def loaders_lines(found: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"`{name}`",
            f"{speeds['alone']:,.0f}",
            f"{speeds['with_step']:,.0f}",
            f"{max(0.0, 1 - speeds['with_step'] / found['step']):.0%}",
        ]
        for name, speeds in found["formats"].items()
    ]
    heads = ["data.format", "images/s alone", "with the step", "of the step's time idle"]
    head = (
        f"Two views of 256 images of 32 px, `symmetric`, {found['workers']} worker processes; the "
        f"step alone (explicit MIM) takes {found['step']:,.0f} images/s."
    )
    return [head, "", *table(heads, rows)]


INNER: dict[str, Callable[..., dict[str, Any]]] = {"stream": stream, "loaders": loaders}


# plan


def plan(job: Job) -> dict[str, Any]:
    """Short trainings beside what the planner says of them."""
    networks = {"small_cnn at 32 px": ["backbone=small_cnn", "optimizer.batch_size=64"]}
    if not job.small:
        large = ["backbone=resnet50", "augmentations=imagenet/symmetric"]
        networks = {
            "resnet18 at 32 px": ["backbone=resnet18", "optimizer.batch_size=256"],
            "resnet50 at 224 px": [*large, "optimizer.batch_size=128"],
        }
    rows = []
    for number, (name, overrides) in enumerate(networks.items()):
        trial = [
            *(*job.training(), *overrides, "method=explicit_mim", "max_epochs=3"),
            "scheduler.warmup_epochs=0",
            *("limit_train_batches=30", "limit_val_batches=0", "evaluation.offline=false"),
            *("evaluation.information_every_n_epochs=0", "checkpoint.enabled=false"),
        ]
        if job.small:
            trial += ["data.fraction=0.1", "limit_train_batches=5"]
        place = job.work / f"plan-{number}"
        job.solo_mim(f"plan-{number}", "pretrain", *trial, f"output_dir={place}")
        (result,) = place.glob("*/result.json")
        measured = json.loads(result.read_text())
        row = {"network": name, "images_per_second": measured["images_per_second"]}
        row["gib"] = measured["peak_memory_mib"].get("gpu", 0.0) / 2**10 or None
        rows.append({**row, **_predicted(trial, name_of_gpu(job.device))})
    return {"gpu": name_of_gpu(job.device), "rows": rows}


def _predicted(overrides: list[str], gpu: str | None) -> dict[str, Any]:
    from solo_mim.evaluation.gpus import GPUS, UTILISATION
    from solo_mim.planning import plan as planned
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.compose import composed

    recipe = checked(composed("pretrain", overrides))
    found = planned(recipe, gpu or "A100", 50_000, UTILISATION)
    operations = found.flops / recipe.optimizer.batch_size
    peak = GPUS[gpu].half * 1e12 if gpu else None
    return {
        "planned_gib": found.memory,
        "planned_images_per_second": found.images_per_second if gpu else None,
        "operations_per_image": operations,
        "peak": peak,
    }


def name_of_gpu(device: str) -> str | None:
    """The planner's name of this card, where it knows it."""
    import torch

    from solo_mim.evaluation.gpus import GPUS

    if device == "cpu":
        return None
    called = torch.cuda.get_device_name().replace(" ", "")
    return next((name for name in sorted(GPUS, key=len, reverse=True) if name in called), None)


def plan_lines(found: dict[str, Any]) -> list[str]:
    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    rows = []
    for row in found["rows"]:
        speed = row["images_per_second"]
        reached = f"{speed * row['operations_per_image'] / row['peak']:.1%}" if row["peak"] else "-"
        rows.append(
            [
                row["network"],
                *(cell(row[key], 1) for key in ("planned_gib", "gib")),
                *(cell(row[key], 0) for key in ("planned_images_per_second", "images_per_second")),
                reached,
            ]
        )
    heads = ["network", "GiB planned", "measured", "images/s planned", "measured"]
    return table([*heads, "of the peak in 16 bits"], rows)


# training


def training(job: Job) -> dict[str, Any]:
    """Every method for as many epochs as the time allows all of them, and their report."""
    budget = job.left() - (20 if job.small else 40)  # the report
    place = job.work / "training"
    common = [*job.training(), f"output_dir={place}", "seed=1", "check_val_every_n_epoch=1000"]
    small = ["backbone=small_cnn", "data.fraction=0.05", "data.validation_split=0.2"]
    common += small if job.small else ["backbone=resnet18"]
    trial = [*common, f"output_dir={job.work / 'trial'}", "name=trial", "evaluation.offline=false"]
    started = time.monotonic()
    job.solo_mim("trial", "pretrain", "method=byol", *trial, "max_epochs=2")  # the slowest
    took = time.monotonic() - started
    (result,) = (job.work / "trial").glob("*/result.json")
    of_two = json.loads(result.read_text())["training_seconds_of_last_sitting"]
    # Starting and evaluating a run costs about what the trial did beside its epochs, twice over.
    once, epoch = 2 * (took - of_two), of_two / 2
    epochs = int(((budget - took) / len(METHODS) - once) / epoch / 1.1)
    if epochs < 2:
        raise Failed(
            f"{budget:.0f} s are too few: an epoch takes {epoch:.0f} s, a start {once:.0f}"
        )
    print(f"  {epochs} epochs of each method, {epoch:.1f} s each", flush=True)
    problems = []
    for method in METHODS:
        options = [f"method={method}", f"max_epochs={epochs}"]
        try:
            job.solo_mim(f"training-{method}", "pretrain", *options, *common)
        except Failed as error:
            problems.append(str(error))
    report = job.output / "report"
    job.end += 60  # a report of what there is, whatever took too long
    job.solo_mim("report", "report", str(place), "--output", str(report))
    runs = [json.loads(path.read_text()) for path in sorted(place.glob("*/result.json"))]
    command = " ".join(argument for argument in common if not argument.startswith("output_dir"))
    command = command.replace(str(job.data), "D")
    return {
        "command": f"solo-mim pretrain method=METHOD max_epochs={epochs} {command}",
        "runs": runs,
        "problems": problems,
    }


def training_lines(found: dict[str, Any]) -> list[str]:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    rows = []
    for run in sorted(found["runs"], key=lambda r: -(r["offline"]["trained"]["probe_top1"])):
        of_run = run["offline"]["trained"]
        speed = run["images_per_second"]
        memory = run["peak_memory_mib"].get("gpu")
        rows.append(
            [
                run["method"],
                *(cell(of_run[key]) for key in ("probe_top1", "knn_top1")),
                cell(run["information"]["effective_rank"] if run["information"] else None),
                f"{speed:,.0f}" if speed else "-",
                f"{memory:,.0f}" if memory else "-",
            ]
        )
    heads = ["method", "probe", "kNN", "effective rank", "images/s", "MiB on the GPU"]
    return [
        *("```", found["command"], "```", ""),
        *table(heads, rows),
        "",
        "One seed, settings of the recipes, nothing tuned. Also in report/.",
        *(f"- not finished: {problem}" for problem in found["problems"]),
    ]


@dataclass(frozen=True)
class Stage:
    """A part of the call: its share of the time, what it measures, and lines of it for the page."""

    share: float
    measure: Callable[[Job], dict[str, Any]]
    lines: Callable[[dict[str, Any]], list[str]]


STAGES = {
    "tests": Stage(0.1, tests, tests_lines),
    "stream": Stage(0.07, lambda job: job.inner("stream"), stream_lines),
    "losses": Stage(0.08, losses, losses_lines),
    "steps": Stage(0.17, steps, steps_lines),
    "loaders": Stage(0.08, lambda job: job.inner("loaders"), loaders_lines),
    "plan": Stage(0.1, plan, plan_lines),
    "training": Stage(0.4, training, training_lines),
}
SHORTEST = 0.4  # of its share: a stage does not begin with less


def measure(output: Path, device: str, data: Path | None, minutes: float, packages: str) -> None:
    """All stages, each within its share and what those before it have left over."""
    began = time.monotonic()
    end, total = began + 60 * minutes, 60 * minutes
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [packages, str(ROOT)]))
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    print(f"{minutes:g} minutes on {device}, into {output}:")
    for name, stage in STAGES.items():
        print(f"  {name:<9} {stage.share * minutes:5.1f} min")
    later = 1.0  # shares of the stages behind
    for name, stage in STAGES.items():
        later -= stage.share
        file = output / f"{name}.json"
        if file.exists() and "cause" not in json.loads(file.read_text()):
            print(f"{name}: done before")
            continue
        time_left = end - time.monotonic()
        if time_left < SHORTEST * stage.share * total:
            print(f"{name}: passed over, {max(0, time_left):.0f} s are left")
            continue
        limit = max(stage.share * total, time_left - later * total)
        job = Job(output, device, data, time.monotonic() + min(limit, time_left), environment)
        print(f"{name}: up to {job.left():.0f} s", flush=True)
        started = time.monotonic()
        try:
            found = stage.measure(job)
        except Exception as error:  # of one stage; the others go on
            said = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            found = {"cause": said}
            print(f"{name}: FAILED: {said}", flush=True)
        found["seconds"] = round(time.monotonic() - started)
        file.write_text(json.dumps(found, indent=1) + "\n")
        (output / "gpu.md").write_text(page(output, device))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; the figures are in {output / 'gpu.md'}")


def page(output: Path, device: str) -> str:
    """gpu.md, of the stages that have been gone through."""
    import torch

    from solo_mim.runs.identity import commit, versions

    card = torch.cuda.get_device_name() if device != "cpu" else "CPU, no GPU"
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"# On {card}", "", f"{cores} CPU cores, {packages}, commit {commit()}."]
    for name, stage in STAGES.items():
        file = output / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text())
            said = [f"Failed: {found['cause']}"] if "cause" in found else stage.lines(found)
            lines += ["", f"## {name} ({found['seconds']} s)", "", *said]
    return "\n".join(lines) + "\n"


# What a machine without a network lacks


def pack(folder: Path, data: Path | None) -> None:
    """Wheels and images in a folder.

    Raises:
        SystemExit: no images are named, or they are too many bytes.
    """
    if data is None or not all((data / part).is_dir() for part in PARTS.values()):
        raise SystemExit("--pack needs --data FOLDER with train/CLASS/* and test/CLASS/*")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*wheel, str(folder), *wanted], check=True)
    with tarfile.open(folder / IMAGES, "w:gz") as archive:
        for part in PARTS.values():
            archive.add(data / part, part)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{size / 2**20:.1f} MiB in {folder}: {', '.join(sorted(os.listdir(folder)))}")
    if size > MOST:
        raise SystemExit(f"more than {MOST / 2**20:.0f} MiB: give images of fewer bytes, as JPEG")


def unpack(folder: Path, work: Path) -> tuple[str, Path]:
    """Folders of the packages and of the images of a pack, made once."""
    packages, images = work / "packages", work / "images"
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels or not (folder / IMAGES).exists():
        raise SystemExit(f"{folder} is no folder of --pack: it lacks wheels or {IMAGES}")
    if not packages.exists():
        offline = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(packages)]
        subprocess.run([sys.executable, "-m", "pip", "install", *offline, *wheels], check=True)
    if not images.exists():
        partial = images.with_suffix(".partial")
        with tarfile.open(folder / IMAGES) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(images)
    return str(packages), images


def main() -> None:
    """The call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="images of CIFAR-10")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("gpu-evidence"))
    parser.add_argument("--device", help="cpu, to try it in small; the GPU by default")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="collect for no network, and end")
    parser.add_argument("--packed", type=Path, metavar="DIR", help="what --pack has collected")
    parser.add_argument("--inner", choices=INNER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    data = given.data.resolve() if given.data else None
    if given.pack:
        pack(given.pack, data)
        return
    if given.inner:
        arguments = (given.device, data) if given.inner == "loaders" else (given.device,)
        print(json.dumps(INNER[given.inner](*arguments)))
        return
    if given.minutes <= 0:
        parser.error("--minutes must be above 0")
    output, packages = given.output.resolve(), ""
    output.mkdir(parents=True, exist_ok=True)
    if given.packed:
        packages, images = unpack(given.packed, output.with_name(f"{output.name}-work"))
        sys.path.insert(1, packages)
        data = data or images
    import torch

    if given.device is None and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu tries all of it in small")
    measure(output, given.device or "cuda", data, given.minutes, packages)


if __name__ == "__main__":
    main()
