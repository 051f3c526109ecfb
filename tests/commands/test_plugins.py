"""Methods of other packages: the one of docs/plugins.md installed for real, and what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from solo_mim.commands import main
from solo_mim.errors import ConfigError
from solo_mim.installed import origins
from solo_mim.methods import METHODS, find_method
from solo_mim.runs import sources

DOCUMENT = Path(__file__).parents[2] / "docs" / "plugins.md"
TINY = [
    "max_epochs=1",
    "limit_train_batches=2",
    "limit_val_batches=2",
    "evaluation.offline=false",
    "data.num_workers=0",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which pip has installed the package that the document describes."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    files = re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    assert len(files) == 3
    for name, content in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Registers entry points as an installed package would: `register("a", name="module:Class")`,
    where `code` is that of a module of the package's name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(package, code="", version="1.0", **plugins):
        info = tmp_path / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        lines = [f"{name} = {value}" for name, value in plugins.items()]
        (info / "entry_points.txt").write_text("\n".join(["[solo_mim.methods]", *lines]) + "\n")
        (tmp_path / f"{package}.py").write_text(code)
        monkeypatch.delitem(sys.modules, package, raising=False)

    return write


def test_help_lists_the_recipe_of_an_installed_package(installed):
    done = subprocess.run(
        [sys.executable, "-m", "solo_mim", "pretrain", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *sys.path[1:]])},
        capture_output=True,
        text=True,
    )
    assert re.search("method: .*align_uniform, .*vicreg", done.stdout), done.stderr


def test_the_documented_package_trains_through_the_command_with_the_recipe_it_brings(
    installed, tmp_path
):
    done = subprocess.run(
        [sys.executable, "-m", "solo_mim", "pretrain", "method=align_uniform", *TINY],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *sys.path[1:]])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert result["method"] == "align_uniform"
    assert result["versions"]["align-uniform"] == "0.1"
    assert result["information"]["images"] > 0
    header, first = (run / "metrics.csv").read_text().splitlines()
    metrics = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(metrics["train_align_uniform_loss_epoch"]) < 0


def test_a_recipe_of_ones_own_stands_in_a_folder_given_by_config_dir(
    register, tmp_path, monkeypatch, capsys
):
    register("theirs", their_method="theirs:Method")
    (tmp_path / "mine" / "method").mkdir(parents=True)
    recipe = "# @package _global_\nmethod: their_method\n"
    (tmp_path / "mine" / "method" / "their_method.yaml").write_text(recipe)
    arguments = ["pretrain", "--config-dir", str(tmp_path / "mine"), "--cfg", "job"]
    monkeypatch.setattr(sys, "argv", ["solo-mim", *arguments])
    assert main([*arguments, "method=their_method"]) == 0
    shown = capsys.readouterr().out
    assert "method: their_method" in shown


def test_a_plugin_is_found_under_its_package_and_imported_only_when_asked_for(register):
    code = "from solo_mim.host import BaseMethod\nclass Method(BaseMethod): pass\n"
    register("theirs", code, their_method="theirs:Method")
    assert origins()["their_method"] == ["theirs 1.0"]
    assert find_method("vicreg") is METHODS["vicreg"]
    assert "theirs" not in sys.modules
    assert find_method("their_method").__module__ == "theirs"


def test_a_plugins_sources_count_for_its_own_methods_alone(register, tmp_path):
    def digests():
        sources.digest.cache_clear()
        return sources.digest("their_method"), sources.digest("vicreg")

    register("theirs", "sign = 1\n", their_method="theirs:Method")
    theirs, ours = digests()
    assert theirs != ours
    (tmp_path / "theirs.py").write_text("# A remark.\nsign = 1\n")
    assert digests() == (theirs, ours)
    (tmp_path / "theirs.py").write_text("sign = -1\n")
    changed, ours_again = digests()
    assert changed != theirs
    assert ours_again == ours
    assert "theirs" not in sys.modules


def test_a_momentum_method_is_a_method(register):
    code = "from solo_mim.host import BaseMomentumMethod\nclass M(BaseMomentumMethod): pass\n"
    register("theirs", code, their_method="theirs:M")
    assert find_method("their_method").__name__ == "M"


@pytest.mark.parametrize(
    ("code", "value", "message"),
    [
        ("import no_such_module", "theirs:M", r"of theirs 1.0 cannot be imported \(ModuleNotFoun"),
        ("raise RuntimeError('two\\nlines')", "theirs:M", r"\(RuntimeError: two lines\)"),
        ("raise SystemExit(3)", "theirs:M", r"cannot be imported \(SystemExit"),
        ("", "theirs:M", r"cannot be imported \(AttributeError"),
        ("", "not a module", r"cannot be imported"),
        ("M = object()", "theirs:M", r"theirs:M of theirs 1.0 is no method.*BaseMethod"),
        ("class M: pass", "theirs:M", r"is no method"),
    ],
)
def test_a_broken_plugin_is_refused_and_breaks_no_other(register, code, value, message):
    register("theirs", code, their_method=value)
    with pytest.raises(ConfigError, match=message) as refused:
        find_method("their_method")
    assert "\n" not in str(refused.value)
    assert find_method("explicit_mim") is METHODS["explicit_mim"]


@pytest.mark.parametrize(
    ("name", "first"), [("vicreg", "solo-learn "), ("explicit_mim", "solo-mim")]
)
def test_a_plugin_of_a_shipped_methods_name_is_refused(register, name, first):
    register("theirs", **{name: "theirs:M"})
    with pytest.raises(ConfigError, match=f"offered by {first}.* and by theirs 1.0; uninstall"):
        find_method(name)
    assert find_method("simclr") is METHODS["simclr"]


def test_two_plugins_of_one_name_are_refused_with_both_packages(register):
    register("one", method_x="one:M")
    register("two", version="2.0", method_x="two:M")
    with pytest.raises(ConfigError, match=r"(?=.*one 1\.0)(?=.*two 2\.0)"):
        find_method("method_x")


def test_a_misspelt_plugin_is_suggested(register):
    register("theirs", their_method="theirs:M")
    with pytest.raises(ConfigError, match="did you mean 'their_method'"):
        find_method("their_metod")


def test_another_version_of_the_plugin_is_another_run(register, compose_cfg, tmp_path):
    from solo_mim.runs.identity import folder_of

    config = OmegaConf.to_container(compose_cfg())
    ours = folder_of(config, "0123")
    config["method"] = "their_method"
    register("theirs", their_method="theirs:M")
    first = folder_of(config, "0123")
    (tmp_path / "theirs-1.0.dist-info" / "METADATA").write_text("Name: theirs\nVersion: 1.1\n")
    assert folder_of(config, "0123") != first
    config["method"] = "explicit_mim"
    assert folder_of(config, "0123") == ours
