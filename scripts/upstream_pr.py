"""Lays the pull request of `upstream/` on a checkout of solo-learn: one commit on a branch.

    python scripts/upstream_pr.py --solo-learn CHECKOUT            # lay it, print the diff stat
    python scripts/upstream_pr.py --solo-learn CHECKOUT --check    # has the checkout drifted?

`upstream/files` are the new files, in solo-learn's layout; `upstream/registries.patch` is what
changes in existing ones. The branch starts from what is checked out; a second run changes nothing,
or makes the commit anew where something has changed here.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

UPSTREAM = Path(__file__).parents[1] / "upstream"
FILES = UPSTREAM / "files"
REGISTRIES = UPSTREAM / "registries.patch"
BRANCH = "explicit_mim"
SUBJECT = "Add explicit MIM"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--solo-learn", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where it drifted")
    given = parser.parse_args(arguments)
    checkout = given.solo_learn.resolve()
    if not (checkout / "main_pretrain.py").is_file() or not (checkout / ".git").exists():
        sys.exit(f"{checkout} is no git checkout of solo-learn main")
    if given.check:
        check(checkout)
    else:
        lay(checkout)


def check(checkout: Path) -> None:
    """Say whether the pull request is laid, or could be; exit with 1 and the files otherwise."""
    states = compare(checkout)
    if set(states.values()) == {"laid"}:
        print("laid, as it is here")
    elif set(states.values()) == {"to lay"}:
        print("not laid; it applies")
    else:
        sys.exit("drifted:\n" + "\n".join(f"  {state:8} {name}" for name, state in states.items()))


def lay(checkout: Path) -> None:
    """Make or update the one commit, on the branch."""
    if git(checkout, "status", "--porcelain"):
        sys.exit(f"{checkout} has changes that are not committed: commit or stash them first")
    before = git(checkout, "branch", "--show-current").strip() or "HEAD"
    if before != BRANCH:
        known = git(checkout, "branch", "--list", BRANCH)
        git(checkout, "switch", BRANCH) if known else git(checkout, "switch", "--create", BRANCH)
    tip = git(checkout, "rev-parse", "HEAD").strip()
    if git(checkout, "log", "-1", "--format=%s").strip() == SUBJECT:
        git(checkout, "reset", "--quiet", "--hard", "HEAD~1")  # made anew, whatever has changed
    if run_git(checkout, "apply", "--check", str(REGISTRIES)).returncode:
        git(checkout, "reset", "--quiet", "--hard", tip)
        git(checkout, "switch", before)
        sys.exit(
            f"{REGISTRIES.name} does not apply to branch {BRANCH} of {checkout}: bring the patch "
            "up to date, or delete the branch and start from main"
        )
    for file in new_files():
        (checkout / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FILES / file, checkout / file)
    git(checkout, "apply", str(REGISTRIES))
    git(checkout, "add", "--all")
    if git(checkout, "diff", "--cached", "--name-only", tip):
        git(checkout, "commit", "--quiet", "--message", SUBJECT)
    else:
        git(checkout, "reset", "--quiet", "--hard", tip)  # nothing is new
    print(git(checkout, "show", "--stat", "--format=%h %s", "HEAD"), end="")


def compare(checkout: Path) -> dict[str, str]:
    """State of each part: "laid" as it is here, "to lay", or "differs" from both."""
    states = {}
    for file in new_files():
        there = checkout / file
        same = there.is_file() and there.read_text() == (FILES / file).read_text()
        states[str(file)] = "laid" if same else "differs" if there.exists() else "to lay"

    def applies(*reverse: str) -> bool:
        return not run_git(checkout, "apply", "--check", *reverse, str(REGISTRIES)).returncode

    name = REGISTRIES.name
    states[name] = "laid" if applies("--reverse") else "to lay" if applies() else "differs"
    return states


def new_files() -> list[Path]:
    files = (file for file in FILES.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return sorted(file.relative_to(FILES) for file in files)


def git(checkout: Path, *arguments: str) -> str:
    """What git prints there; where it fails, exit with what it says."""
    done = run_git(checkout, *arguments)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def run_git(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True)


if __name__ == "__main__":
    main()
