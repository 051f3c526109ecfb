"""The digest of the code: what counts for it and what does not."""

import io
import shutil
import tokenize
from pathlib import Path

import pytest

from solo_mim.installed import PACKAGE
from solo_mim.runs import sources

SOURCE = '''"""Of a module."""

import re  # why

TEXT = """a
# no comment
b"""
JOINED = (
    "a"
    """b"""
)
CONTINUED = \\
    "c"


def loss(z):
    r"""Of a \"function\"."""
    # The sign.
    return {"#": -z}["#"]  # nats
'''
CODE = '''import re
TEXT = """a
# no comment
b"""
JOINED = (
    "a"
    """b"""
)
CONTINUED = \\
    "c"
def loss(z):
    return {"#": -z}["#"]
'''


@pytest.fixture
def digest_of_copy(tmp_path, monkeypatch):
    """The digest of a copy of the package with a replacement in a file of it:
    `digest_of_copy(file, old, new)`."""
    copy = shutil.copytree(PACKAGE, tmp_path / "solo_mim")
    monkeypatch.setattr(sources, "PACKAGE", copy)

    def edited(file="__init__.py", old="", new=""):
        path = copy / file
        before = path.read_bytes()
        assert old.encode() in before
        path.write_bytes(before.replace(old.encode(), new.encode(), 1))
        sources.digest.cache_clear()
        found = sources.digest()
        path.write_bytes(before)
        return found

    yield edited
    sources.digest.cache_clear()


def test_comments_docstrings_and_blank_lines_are_no_code_and_all_else_is():
    assert sources.code_lines(SOURCE) == CODE.splitlines()


@pytest.mark.parametrize("folder", ["losses", "host", "commands", "evaluation"])
def test_code_lines_are_those_of_pythons_own_tokenizer(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        source = path.read_text()
        assert sources.code_lines(source) == tokenized(source), path


def tokenized(source):
    """By `tokenize`: lines without comments and without strings that are statements."""
    lines = source.splitlines(keepends=True)
    statement = True
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    shown = [t for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL)]
    left_out = [t for t in tokens if t.type == tokenize.COMMENT]
    for token, after in zip(shown, [*shown[1:], None], strict=True):
        if token.type == tokenize.STRING and statement and after.type == tokenize.NEWLINE:
            left_out.append(token)
        statement = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in sorted(left_out, reverse=True, key=lambda token: token.start):
        (first, start), (last, end) = token.start, token.end
        lines[first - 1 : last] = [lines[first - 1][:start] + lines[last - 1][end:]]
    return [line.rstrip() for line in "".join(lines).splitlines() if line.strip()]


def test_the_digest_goes_by_the_code_alone_and_not_by_where_it_lies(digest_of_copy):
    same = digest_of_copy()
    sources.digest.cache_clear()
    loss = "losses/explicit_mim.py"
    for file, old, new in (
        (loss, '"""', '"""In other words: '),
        (loss, "\n\n", "\n# another remark\n\n\n"),
        ("losses/logdet.py", "\n", "\r\n"),
        ("evaluation/report.py", "Top-1 in percent", "Accuracy"),
        ("commands/plan.py", "def ", "def other_"),
        ("planning.py", "def ", "def other_"),
        ("benchmarks.py", "def ", "def other_"),
    ):
        assert digest_of_copy(file, old, new) == same, (file, old)
    for file, old, new in (
        (loss, "loss = within + (between", "loss = within - (between"),
        ("methods/rivals.py", "class MEC", "class Mec"),
        ("data/transforms.py", "return ", "return 1 * "),
        ("evaluation/offline.py", "return ", "return 1 * "),
        ("training.py", "2**31", "2**30"),
    ):
        assert digest_of_copy(file, old, new) != same, (file, old)


def test_the_digest_is_that_of_the_package_wherever_it_is_imported_from(digest_of_copy):
    copy = digest_of_copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PACKAGE", Path(PACKAGE))
        sources.digest.cache_clear()
        assert sources.digest() == copy
