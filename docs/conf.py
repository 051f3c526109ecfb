"""The documentation: `sphinx-build -W docs site`."""

import solo_mim

project = "solo-mim"
author = "The solo-mim developers"
copyright = f"{author}, MIT licence"
version = release = solo_mim.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "solo-mim"
html_favicon = "favicon.svg"
html_show_sphinx = False

napoleon_custom_sections = [("method_kwargs", "params_style")]
default_role = "code"  # docstrings are plain text with `names`
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
