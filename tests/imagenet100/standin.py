"""Stands in for `solo-mim` in tests of the driver: leaves what it leaves, in a tenth of a second.

    python standin.py FOLDER COMMAND ARGUMENT ...

FOLDER has `METHOD.json`, the configuration of each method's runs; what each command did is a line
of `journal`. A method whose name is in `broken` cannot be built; a pre-training that is named in
`full` finds a full disk after its first epoch. The first that finds a file `late` makes it `waits`
and does nothing until that is gone. No module of solo-mim is imported: that takes ten times as
long.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

EPOCHS, EPOCH = 3, 0.05  # seconds
HERE, COMMAND, WORDS = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
GIVEN = dict(word.partition("=")[::2] for word in WORDS if "=" in word)


@contextlib.contextmanager
def whole():
    """No signal in here: what is left and what the journal has of it are one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def note(*what: object) -> None:
    with (HERE / "journal").open("a") as file:
        print(os.getpid(), COMMAND, *what, file=file, flush=True)


def named(file: str) -> list[str]:
    path = HERE / file
    return path.read_text().split() if path.exists() else []


def end(code: int, said: str) -> None:
    print(f"solo-mim: {said}", file=sys.stderr, flush=True)
    sys.exit(code)


def locked(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("a")
    for _ in range(20):  # somebody may look
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(1)
            return file
        time.sleep(0.01)
    end(2, f"another process is at work on this run, in {folder}; wait for it or stop it")


def begun(folder: Path, config: dict) -> None:
    (folder / "failure.txt").unlink(missing_ok=True)
    text = re.sub(r"(?<=[ \[]\d)e-", ".0e-", json.dumps(config))  # numbers to YAML too
    with whole():
        (folder / "config.partial").write_text(text)
        os.replace(folder / "config.partial", folder / "config.yaml")
        (folder / "provenance.json").write_text('[{"code": "0", "versions": {}}]')


def pretrain() -> None:
    method, seed = GIVEN["method"], int(GIVEN["seed"])
    name = f"{method}-seed{seed}"
    if method in named("broken"):
        note("refused", name)
        end(2, f"method_kwargs: {method} refuses them (no such thing)")
    folder = Path(GIVEN["output_dir"]) / f"{method}-imagenet100-seed{seed}-0123abcd"
    lock = locked(folder)
    if (folder / "result.json").exists():
        return print("finished before, nothing to do")
    config = json.loads((HERE / f"{method}.json").read_text())
    begun(folder, {**config, "seed": seed})
    metrics = folder / "metrics.csv"
    if not metrics.exists():
        metrics.write_text("epoch,loss\n")
    for epoch in range(len(metrics.read_text().splitlines()) - 1, EPOCHS):
        if name in named("full") and epoch == 1:
            said = f"{folder}: No space left on device; the checkpoint of epoch 1 is kept"
            (folder / "failure.txt").write_text(said)
            end(1, said)
        time.sleep(EPOCH)
        while (HERE / "hold").exists():
            time.sleep(0.01)
        with whole():
            with metrics.open("a") as file:
                file.write(f"{epoch},0.5\n")
            note("epoch", name, epoch)
    top1 = 70.0 + len(method) + 0.1 * seed
    result = {"name": config["name"], "method": method, "data": "imagenet100", "seed": seed}
    result |= {"epochs": EPOCHS, "evaluated_on": "held-out images", "versions": {}, "offline": {}}
    result |= {"online": {"probe_top1": top1, "knn_top1": top1 - 5}, "information": None}
    (folder / "result.partial").write_text(json.dumps(result))
    os.replace(folder / "result.partial", folder / "result.json")
    lock.close()


def evaluation() -> None:
    run = Path(WORDS[0])
    folder = run / COMMAND / "imagenet100-0123abcd"
    lock = locked(folder)
    config: dict = json.loads((run / "config.yaml").read_text())
    if COMMAND == "linear":
        values = {
            key: json.loads(value)
            for key, value in GIVEN.items()
            if value[0] in "[0123456789" and "-" not in value
        }
        for key, value in {**GIVEN, **values}.items():
            section, _, name = key.rpartition(".")
            (config.setdefault(section, {}) if section else config)[name] = value
        config["limit_train_batches"] = config["limit_val_batches"] = None
        config["fast"] = config["finetune"] = False
    begun(folder, config)
    time.sleep(EPOCH)
    classifier = {"linear": "linear layer on augmented images", "knn": "kNN, cosine"}[COMMAND]
    top1 = json.loads((run / "result.json").read_text())["online"]["probe_top1"] + 1
    row = {"classifier": classifier, "split": "held-out images", "images": 5000, "top1": top1}
    result = {"measured": [row], "trained": {"epochs": EPOCHS}, "code": "0"}
    with whole():
        (folder / "result.json").write_text(json.dumps(result))
        note("done", run.name)
    lock.close()


def stopped(number: int, _frame: object) -> None:
    note("stopped")
    end(128 + number, "interrupted; the last epoch is kept; the same command resumes from it")


def main() -> None:
    signal.signal(signal.SIGTERM, stopped)
    note("begins", os.environ.get("CUDA_VISIBLE_DEVICES", "-"), *WORDS)
    if (HERE / "late").exists():
        os.replace(HERE / "late", HERE / "waits")
        while (HERE / "waits").exists():
            time.sleep(0.01)
    if COMMAND == "prepare":
        time.sleep(3 * EPOCH)
        _, _, target, _, source = ["", *WORDS]
        with whole():
            Path(target).mkdir()
            for split in ("train", "val"):
                Path(target, split).symlink_to(Path(source, split))
            Path(target, "manifest.json").write_text("{}")
    elif COMMAND == "pretrain":
        pretrain()
    elif COMMAND in ("linear", "knn"):
        evaluation()
    else:
        time.sleep(3 * EPOCH)
    note("ends")


main()
