"""What is meant for solo-learn: the loss is ours, the patches mend what their scripts show.

The file is also the program of a process of two: `python test_upstream.py RANK FOLDER`.
"""

import ast
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import solo_mim.host  # noqa: F401 (lets solo-learn 1.0.2 be imported)
from solo_mim.losses import (
    ExplicitMIMOptions,
    NonFiniteEmbeddingError,
    explicit_mim_loss_func,
    explicit_mim_terms,
)

ROOT = Path(__file__).parents[1]
FILES, BUGS = ROOT / "upstream" / "files", ROOT / "upstream" / "bugs"
SCRIPT = ROOT / "scripts" / "upstream_pr.py"
LOSS = "solo/losses/explicit_mim.py"


def upstream_loss_func():
    spec = importlib.util.spec_from_file_location("upstream_explicit_mim", FILES / LOSS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.explicit_mim_loss_func


def views_of(num_views, num_samples, dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_views * num_samples + dim)
    image = torch.randn(num_samples, dim, generator=generator)
    noise = torch.randn(num_views, num_samples, dim, generator=generator)
    return (image + noise + 2).to(dtype).requires_grad_()


def close(found, expected, tolerance):
    """Whether the difference is small beside the expected tensor as a whole."""
    difference = torch.linalg.vector_norm(found.double() - expected.double())
    return difference <= tolerance * torch.linalg.vector_norm(expected.double())


class TestLoss:
    @pytest.mark.parametrize("reading", ["infomax", "two_view"])
    @pytest.mark.parametrize("num_views", [2, 3, 4])
    @pytest.mark.parametrize("shape", [(2, 2048), (32, 128), (256, 128), (40, 80), (2, 1), (9, 7)])
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 1e-2)],
    )
    def test_has_the_value_and_gradient_of_ours(self, reading, num_views, shape, dtype, tolerance):
        ours, theirs = (views_of(num_views, *shape, dtype) for _ in range(2))
        expected = explicit_mim_terms(ours, reading=reading)
        expected.loss.backward()
        found = upstream_loss_func()(theirs.unbind(), reading=reading)
        found["loss"].backward()
        for name, term in found.items():
            assert term.item() == pytest.approx(getattr(expected, name).item(), rel=1e-4, abs=1e-5)
        assert close(theirs.grad, ours.grad, tolerance)

    def test_other_floors(self):
        floors = {"within_noise": 0.3, "total_noise": 0.02}
        ours, theirs = (views_of(2, 20, 12) for _ in range(2))
        expected = explicit_mim_loss_func(ours, **floors)
        expected.backward()
        found = upstream_loss_func()(theirs.unbind(), **floors)["loss"]
        found.backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(theirs.grad, ours.grad)

    def test_small_coordinates_are_scaled_as_ours(self):
        scale = torch.tensor([1e-4, 1.0, 0.0, 1e-3, 5.0], dtype=torch.float64)
        ours, theirs = (views_of(2, 16, 5).detach().requires_grad_() for _ in range(2))
        expected = explicit_mim_loss_func(ours * scale)
        found = upstream_loss_func()((theirs * scale).unbind())["loss"]
        expected.backward()
        found.backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(theirs.grad, ours.grad)

    @pytest.mark.parametrize("shape", [(7, 4), (3, 40)])
    def test_overflow_is_an_error_as_in_ours(self, shape):
        views = views_of(2, *shape, torch.float32).detach()
        views[1, 2, 3] = 1e20
        with pytest.raises(NonFiniteEmbeddingError):
            explicit_mim_loss_func(views)
        with pytest.raises(RuntimeError, match="not positive-definite"):
            upstream_loss_func()(views.unbind())

    @pytest.mark.parametrize("shape", [(1, 8, 4), (2, 0, 4), (2, 1, 4), (2, 8, 0)])
    def test_too_little_is_refused_as_by_ours(self, shape):
        with pytest.raises(ValueError, match=r"needs 2|of 0 dimensions"):
            explicit_mim_loss_func(torch.randn(shape))
        with pytest.raises(AssertionError):
            upstream_loss_func()(torch.randn(shape).unbind())

    def test_autocast_does_not_reach_it(self):
        views = views_of(2, 64, 32, torch.float32)
        expected = upstream_loss_func()(views.unbind())["loss"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(upstream_loss_func()(views.unbind())["loss"], expected)

    def test_defaults_are_ours(self):
        def defaults(function):
            return {
                name: parameter.default
                for name, parameter in inspect.signature(function).parameters.items()
                if parameter.default is not inspect.Parameter.empty
            }

        assert defaults(upstream_loss_func()).items() <= defaults(explicit_mim_loss_func).items()

    @pytest.mark.distributed
    def test_two_processes_have_the_gradient_of_one(self, solo_learn_main, tmp_path):
        # The `gather` of 1.0.2 leaves out what the other processes' losses owe to its samples.
        path = os.pathsep.join(map(str, (solo_learn_main, ROOT)))
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, str(rank), str(tmp_path)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        errors = [process.communicate()[1] for process in ranks]
        assert not any(process.returncode for process in ranks), errors
        for dim in DIMS:
            views = views_of(2, 2 * SHARE, dim)
            loss = explicit_mim_loss_func(views)
            loss.backward()
            shares = [torch.load(tmp_path / f"{dim}-{rank}.pt") for rank in range(2)]
            for found, _ in shares:
                torch.testing.assert_close(found, loss.detach())
            # Each process has its samples' gradient, twice for the mean that is taken over two.
            gradient = torch.cat([gradient for _, gradient in shares], dim=1) / 2
            torch.testing.assert_close(gradient, views.grad)


DIMS, SHARE = (6, 40), 8


def run_rank(rank, folder):
    dist.init_process_group(
        "gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=2
    )
    for dim in DIMS:
        own = views_of(2, 2 * SHARE, dim).detach()[:, rank * SHARE : (rank + 1) * SHARE]
        own.requires_grad_()
        loss = upstream_loss_func()(own.unbind())["loss"]
        loss.backward()
        torch.save((loss.detach(), own.grad), folder / f"{dim}-{rank}.pt")
    dist.destroy_process_group()


class TestFiles:
    @pytest.mark.parametrize(
        "file", sorted(FILES.rglob("*.py")), ids=lambda p: str(p.relative_to(FILES))
    )
    def test_is_python_38_with_the_licence_and_nothing_of_ours(self, file):
        text = file.read_text()
        ast.parse(text, feature_version=(3, 8))
        assert text.startswith("# Copyright 2023 solo-learn development team.\n")
        assert "solo_mim" not in text

    @pytest.mark.parametrize(
        ("file", "data"), [("cifar", "cifar10"), ("imagenet-100", "imagenet100")]
    )
    def test_pretraining_is_our_recipe(self, file, data, compose_cfg):
        path = FILES / "scripts" / "pretrain" / file / "explicit_mim.yaml"
        theirs = OmegaConf.create(yaml.safe_load(path.read_text()))
        ours = compose_cfg(f"data={data}", "method=explicit_mim")
        for key in ("method", "max_epochs", "scheduler.name", "data.dataset", "backbone.name"):
            assert OmegaConf.select(theirs, key) == OmegaConf.select(ours, key), key
        # Ours are left open: floors by other options, dimensions by the batch.
        settled = {**asdict(ExplicitMIMOptions()), "proj_output_dim": 128}
        for key, value in theirs.method_kwargs.items():
            assert value == (ours.method_kwargs[key] or settled[key]), key
        for key in ("name", "lr", "classifier_lr", "kwargs"):
            assert theirs.optimizer[key] == ours.optimizer[key], key
        assert float(theirs.optimizer.weight_decay) == ours.optimizer.weight_decay
        batch = theirs.optimizer.batch_size * len(theirs.devices)
        assert batch == 256 >= 2 * theirs.method_kwargs.proj_output_dim


@pytest.fixture
def checkout(solo_learn_main, tmp_path):
    """A throw-away git repository with the files of solo-learn main."""
    folder = tmp_path / "solo-learn"
    shutil.copytree(
        solo_learn_main, folder, ignore=shutil.ignore_patterns(".git", "__pycache__", "*.pyc")
    )
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "user.name", "A Tester")
    git(folder, "config", "user.email", "tester@example.org")
    git(folder, "config", "core.autocrlf", "false")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "main")
    return folder


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def upstream_pr(folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, "--solo-learn", folder, *arguments], capture_output=True, text=True
    )


class TestScript:
    def test_lays_one_commit_on_a_branch_and_a_second_run_changes_nothing(self, checkout):
        assert upstream_pr(checkout, "--check").stdout == "not laid; it applies\n"
        first = upstream_pr(checkout)
        assert first.returncode == 0, first.stderr
        assert "solo/methods/explicit_mim.py" in first.stdout
        assert git(checkout, "branch", "--show-current") == "explicit_mim\n"
        assert git(checkout, "rev-list", "--count", "main..") == "1\n"
        assert not git(checkout, "status", "--porcelain")
        commit = git(checkout, "rev-parse", "HEAD")
        assert upstream_pr(checkout).stdout == first.stdout
        assert git(checkout, "rev-parse", "HEAD") == commit
        assert upstream_pr(checkout, "--check").stdout == "laid, as it is here\n"

    def test_registers_method_and_loss(self, checkout):
        upstream_pr(checkout)
        program = (
            "import solo.losses, solo.methods as m; print(m.METHODS['explicit_mim'] is "
            "m.ExplicitMIM, 'ExplicitMIM' in m.__all__, "
            "'explicit_mim_loss_func' in solo.losses.__all__)"
        )
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "True True True\n", done.stderr

    @pytest.mark.parametrize(
        "folder", ["pretrain/cifar", "pretrain/imagenet-100", "linear/imagenet-100"]
    )
    def test_its_configurations_compose(self, folder, checkout):
        upstream_pr(checkout)
        with initialize_config_dir(str(checkout / "scripts" / folder), version_base="1.2"):
            cfg = compose("explicit_mim")
        assert cfg.get("method", cfg.get("pretrain_method")) == "explicit_mim"
        assert Path(cfg.data.val_path).name == ("datasets" if "cifar" in folder else "val")
        assert [crop.num_crops for crop in cfg.get("augmentations", [])] in ([], [2])

    def test_brings_its_commit_up_to_date(self, checkout):
        upstream_pr(checkout)
        (checkout / LOSS).write_text("# older\n")
        git(checkout, "commit", "--quiet", "--all", "--amend", "--no-edit")
        drifted = upstream_pr(checkout, "--check")
        assert drifted.returncode == 1
        assert f"differs  {LOSS}" in drifted.stderr
        git(checkout, "switch", "--quiet", "main")
        assert upstream_pr(checkout).returncode == 0
        assert upstream_pr(checkout, "--check").returncode == 0
        assert git(checkout, "rev-list", "--count", "main..") == "1\n"

    def test_makes_its_commit_anew_where_registries_changed_and_files_went(self, checkout):
        upstream_pr(checkout)
        readme = checkout / "README.md"
        readme.write_text(readme.read_text().replace("Explicit MIM", "An older name"))
        (checkout / "solo" / "dropped.py").write_text("# of an earlier pull request\n")
        git(checkout, "add", "--all")
        git(checkout, "commit", "--quiet", "--amend", "--no-edit")
        assert upstream_pr(checkout, "--check").returncode == 1
        assert upstream_pr(checkout).returncode == 0
        assert upstream_pr(checkout, "--check").stdout == "laid, as it is here\n"
        assert not (checkout / "solo" / "dropped.py").exists()
        assert git(checkout, "rev-list", "--count", "main..") == "1\n"

    def test_refuses_changes_that_are_not_committed(self, checkout):
        (checkout / "README.md").write_text("mine\n")
        refused = upstream_pr(checkout)
        assert refused.returncode == 1
        assert "commit or stash" in refused.stderr
        assert git(checkout, "branch", "--show-current") == "main\n"

    def test_refuses_a_main_that_its_patch_does_not_fit(self, checkout):
        (checkout / "solo" / "methods" / "__init__.py").write_text("METHODS = {}\n")
        git(checkout, "commit", "--quiet", "--all", "--message", "another main")
        assert "differs  registries.patch" in upstream_pr(checkout, "--check").stderr
        refused = upstream_pr(checkout)
        assert refused.returncode == 1
        assert "does not apply" in refused.stderr
        assert not git(checkout, "status", "--porcelain")
        assert git(checkout, "branch", "--show-current") == "main\n"

    def test_refuses_another_folder(self, tmp_path):
        assert "no git checkout of solo-learn" in upstream_pr(tmp_path).stderr


@pytest.mark.parametrize("bug", sorted(patch.stem for patch in BUGS.glob("*.patch")))
def test_patch_mends_what_its_script_shows(bug, checkout):
    def shows():
        environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [sys.executable, BUGS / f"{bug}.py"],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )

    assert shows().returncode == 1
    git(checkout, "apply", str(BUGS / f"{bug}.patch"))
    mended = shows()
    assert mended.returncode == 0, mended.stderr[-3000:]


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
