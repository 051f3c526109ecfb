"""`pip install .` fails with setuptools >= 82, which has no `pkg_resources`.

    cd CHECKOUT && python setup_pkg_resources.py

pip builds in a fresh environment with the newest setuptools, whichever is installed.
"""

import sys

import setuptools  # noqa: F401 (brings distutils)
from distutils.core import run_setup

if __name__ == "__main__":
    sys.modules["pkg_resources"] = None  # as it is there
    requirements = run_setup("setup.py", stop_after="init").install_requires
    print(requirements)
    with open("requirements.txt") as lines:
        assert len(requirements) == len(lines.readlines())
