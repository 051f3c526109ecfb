"""What CONTRIBUTING.md says of the house: rooms, the way of imports, lengths, what starts fast."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from solo_mim.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "solo_mim"
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(name: str) -> str:
    """`runs` of solo_mim.runs.files."""
    return name.split(".")[1] if "." in name else ""


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "solo_mim":
            found |= {f"solo_mim.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def rooms() -> list[str]:
    """The rooms in the order of the tree in CONTRIBUTING.md."""
    tree = re.search(r"```\nsolo_mim/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    return [name for line in tree.splitlines() for name in re.findall(r"\w+", line[:44])]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_tree_in_the_document_is_the_house():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(rooms()) == there - {"__init__", "__main__", "__pycache__"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    order = rooms()
    own = room_of(name_of(path))
    if own in ("", "__main__"):
        return
    ours = [name for name in imports_of(path) if name.startswith("solo_mim.")]
    later = [name for name in ours if order.index(room_of(name)) > order.index(own)]
    assert later == []


def test_only_the_seam_imports_solo_learn_and_only_compose_imports_hydra():
    def importing(package, allowed):
        return [
            name_of(path)
            for path in FILES
            if {name.split(".")[0] for name in imports_of(path)} & {package}
            and name_of(path) not in allowed
        ]

    assert importing("hydra", {"solo_mim.recipe.compose"}) == []
    assert importing("solo", ()) == [], "by importlib, under the mends of the seam"
    texts = {name_of(path): path.read_text() for path in FILES}
    seam = [name for name, text in texts.items() if re.search(r'import_module\(f?"solo\.', text)]
    assert {name.rpartition(".")[0] for name in seam} == {"solo_mim.host"}


def test_nothing_in_a_package_goes_round_in_a_circle():
    graph = {name_of(path): imports_of(path) for path in FILES}

    def reached(start):
        seen, open_ = set(), [start]
        while open_:
            for name in graph.get(open_.pop(), ()):
                if name in graph and name not in seen and not name.count(".") < 2:
                    seen.add(name)
                    open_.append(name)
        return seen

    assert [name for name in graph if name in reached(name)] == []


def test_what_is_listed_without_an_import_is_what_is_there():
    from solo_mim import backbones, host, installed, methods

    assert set(installed.OUR_METHODS) == set(methods.OURS)
    assert set(installed.OUR_BACKBONES) == set(backbones.OUR_BACKBONES)
    assert set(installed.host_methods()) == set(host.METHODS)
    assert {*installed.host_backbones(), *installed.OUR_BACKBONES} == set(host.BACKBONES)


def test_functions_can_be_read():
    lengths = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lengths[f"{name_of(path)}.{node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    assert sum(lines > 40 for lines in lengths.values()) < len(lengths) / 40


def test_commands_are_thin():
    lengths = {p.name: len(p.read_text().splitlines()) for p in (PACKAGE / "commands").glob("*.py")}
    assert max(lengths.values()) <= 150, lengths
    assert sum(lengths.values()) < 1300


# What is not imported for it, and what else it may not take the time for.
HELP = ["torch", "lightning", "hydra", "omegaconf", "pandas", "matplotlib", "numpy", "solo"]
STARTS = [
    *((["--help"], HELP), (["pretrian"], HELP)),
    *(([command, "--help"], HELP) for command in COMMANDS),
    (["methods"], ["torch", "lightning", "hydra", "pandas", "solo"]),
    (["doctor"], ["lightning", "hydra", "pandas", "torchvision", "solo"]),
    (["runs", "."], ["lightning", "torch", "hydra", "pandas", "solo"]),
    (["report", "."], ["lightning", "hydra", "torchvision", "timm", "solo"]),
]


@pytest.mark.parametrize(("arguments", "absent"), STARTS, ids=[" ".join(a) for a, _ in STARTS])
def test_a_command_imports_no_more_than_it_needs(arguments, absent, tmp_path):
    code = (
        "import contextlib, sys\n"
        "from solo_mim.commands import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "print('imported', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    assert last.startswith("imported ")
    assert set(last.split()) & set(absent) == set()


def test_rooms_below_the_seam_need_no_solo_learn():
    below = {"optim", "evaluation", "runs", "information", "losses"}
    names = [name_of(path) for path in FILES if room_of(name_of(path)) in below]
    code = (
        "import importlib, importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *of: None if name == 'solo' else find(name, *of)\n"
        "sys.modules['solo'] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code, *names], check=True)
