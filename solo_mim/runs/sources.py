"""The code that a result was made by: a digest of the sources that can change one."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import Any

from solo_mim import installed
from solo_mim.installed import PACKAGE

# What prints, refuses, plans, compares or draws changes no network and no figure. Whatever is not
# named here counts, so that a new file is not forgotten.
_CHANGES_NOTHING = {
    *("__main__.py", "benchmarks.py", "errors.py", "planning.py"),
    *("processes.py", "progress.py", "stopping.py"),
    *(f"commands/{name}.py" for name in ("__init__", "arguments", "bench", "doctor", "embed")),
    *(f"commands/{name}.py" for name in ("export", "knn", "methods", "plan", "prepare", "report")),
    "data/errors.py",
    *(f"evaluation/{name}.py" for name in ("compare", "cost", "export", "gpus", "names")),
    *(f"evaluation/{name}.py" for name in ("pictures", "plots", "report", "significance")),
    "host/checks.py",
    *(f"runs/{name}.py" for name in ("collect", "sources")),
}
# Of what was made before there was a digest of the sources.
UNKNOWN_CODE = "unknown"
# Not Python's own tokenizer: it takes ten times as long, and versions of it differ in f-strings.
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|"(?:\\.|[^"\\\n])*"|'
    r"'''(?:\\.|[^\\])*?'''|'(?:\\.|[^'\\\n])*'|"
    r"#[^\n]*|[()\[\]{}]",
    re.DOTALL,
)


@cache  # one answer for a whole sweep: the code that was imported, whatever is edited meanwhile
def digest(method: str | None = None) -> str:
    """Twelve hex digits of our sources and, where the method is a plug-in's, of its package's.

    Of solo-learn's too where it is a checkout, for its version there does not tell of edits.
    Comments, docstrings and blank lines do not count.
    """
    places = [PACKAGE]
    if installed.host_generation() == "current":
        places.append(installed.host_location())
    found = hashlib.sha256()
    for place in [*places, *installed.plugin_sources(method)]:
        root = place if place.is_dir() else place.parent  # a module alone is its file
        paths = place.rglob("*.py") if place.is_dir() else [place]
        for name, path in sorted((path.relative_to(root).as_posix(), path) for path in paths):
            if place != PACKAGE or name not in _CHANGES_NOTHING:
                lines = code_lines(path.read_text("utf-8", errors="replace"))
                found.update("\n".join([name, *lines, ""]).encode())
    return found.hexdigest()[:12]


def code_lines(source: str) -> list[str]:
    """The lines of a Python source without comments, docstrings, blank lines and last spaces."""
    kept: list[str] = []
    end = depth = 0
    for token in _TOKEN.finditer(source):
        start, first = token.start(), token[0][0]
        if first in "([{":
            depth += 1
        elif first in ")]}":
            depth -= 1
        if first != "#":
            line = source.rfind("\n", 0, start) + 1
            if depth or not _is_docstring(source, line, *token.span()):
                continue
            start = line
        kept.append(source[end:start])
        end = token.end()
    lines = ("".join(kept) + source[end:]).splitlines()
    return [line.rstrip() for line in lines if line.strip()]


def _is_docstring(source: str, line: int, start: int, end: int) -> bool:
    """Whether what stands from `start` to `end` is a string and a statement of its own, `line`
    being where its first line begins."""
    before, goes_on = source[line:start].strip(), source[line - 2 : line] == "\\\n"
    after = source[end : (source + "\n").index("\n", end)].partition("#")[0]
    return source[start] in "\"'" and before in ("", "r") and not after.strip() and not goes_on


def codes_of(sessions: list[dict[str, Any]]) -> list[str]:
    """Digests of the sources that ran in the sessions of a run's provenance, each once."""
    codes = (session.get("code") or UNKNOWN_CODE for session in sessions)
    return list(dict.fromkeys(codes)) or [UNKNOWN_CODE]
