"""What README and docs show works: Python runs, commands compose, the site builds."""

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from solo_mim.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Its package is built, installed and trained by tests/commands/test_plugins.py.
ELSEWHERE = {"plugins.md"}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language, or of none where it is empty."""
    fenced = re.findall(r"^```([\w{}-]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [body for found, body in fenced if found == language]


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `solo-mim` line in blocks without a language."""
    text = "\n".join(blocks(page, "")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("solo-mim ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


SHOWN = [(page, arguments) for page in PAGES for arguments in commands(page)]


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.name not in ELSEWHERE and blocks(p, "python")],
    ids=lambda p: p.name,
)
def test_python_runs_and_prints_what_its_last_comment_says(page):
    for body in blocks(page, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(body, str(page), "exec"), {})
        last = body.rstrip().splitlines()[-1]
        if last.startswith("# "):
            assert printed.getvalue().splitlines()[-1] == last.removeprefix("# ")


def test_commands_are_shown():
    assert {arguments[0] for _, arguments in SHOWN} >= {
        *("pretrain", "linear", "knn", "transfer", "embed", "export", "plan", "report"),
        *("methods", "bench", "doctor"),
    }


def evaluation_composes(command, rest, compose_cfg, monkeypatch):
    """Its arguments are taken, of a run as pre-training leaves it or of a file without one."""
    from solo_mim import trained
    from solo_mim.commands.linear import hydra_arguments
    from solo_mim.protocols.linear import prepared
    from solo_mim.protocols.transfer import Wanted, shares_of, wanted
    from solo_mim.recipe.compose import composed

    own = compose_cfg()
    monkeypatch.setattr(
        trained,
        "find",
        lambda given: trained.Source(Path(given), None, own if str(given) == "RUN" else None),
    )
    if command == "linear":
        overrides = hydra_arguments([a for a in rest if a != "--multirun"])
        if "--multirun" in rest:
            overrides = [override.split(",")[0] for override in overrides]
        overrides = [override for override in overrides if not override.startswith("hydra.")]
        prepared(composed("linear", overrides))
        return
    module = importlib.import_module(f"solo_mim.commands.{command}")
    given = module.parser().parse_intermixed_args(rest)
    source = trained.find(given.run)
    if command == "transfer":
        sets = wanted(given.data)
        monkeypatch.setattr(Wanted, "paths", lambda *_, **__: {})  # no folder is there
        assert shares_of(given.shares) or given.shares is None
        for one in sets:
            one.recipe(source, given.overrides)
        return
    trained.recipe_of(source, given.overrides, command != "export")


@pytest.mark.parametrize(
    ("page", "arguments"), SHOWN, ids=[f"{p.name}: {shlex.join(a)}" for p, a in SHOWN]
)
def test_shown_command_is_one_and_its_configuration_composes(
    page, arguments, compose_cfg, monkeypatch
):
    command, *rest = arguments
    assert command in COMMANDS
    if command in ("linear", "knn", "transfer", "embed", "export") and "--config-path" not in rest:
        evaluation_composes(command, rest, compose_cfg, monkeypatch)
    if command in ("bench", "check", "plan", "prepare", "report"):
        _, others = (
            importlib.import_module(f"solo_mim.commands.{command}").parser().parse_known_args(rest)
        )
        assert command in ("check", "plan") or not others
        rest = [argument for argument in others if not argument.startswith("-")]
        assert rest == others
    if command in ("doctor", "methods"):
        assert not rest
    if command not in ("check", "pretrain", "plan") or {"--help", "--config-path"} & set(rest):
        return
    overrides = [a for a in rest if "=" in a and not a.startswith("-")]
    if "--multirun" in rest:
        overrides = [override.split(",")[0] for override in overrides]
    if page.name in ELSEWHERE:
        overrides = [o for o in overrides if not o.startswith("method=")]
    compose_cfg(*overrides)


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", ROOT / "docs", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "explicit_mim_loss_func" in (tmp_path / "api.html").read_text()
