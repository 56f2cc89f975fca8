"""How Sphinx builds these pages: ``pip install '.[docs]'; sphinx-build -W docs build/docs``."""

from importlib import metadata

project = "phiquant"
copyright = "The phiquant authors"
release = version = metadata.version("phiquant")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

# Pages are read in the repository as well: headings are linked to as GitHub names them.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"phiquant {release}"
html_copy_source = False

autodoc_default_options = {"members": True, "member-order": "bysource"}
# Docstrings say types, with shapes and units.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
# The members stand below each class, in full.
numpydoc_show_class_members = False

# A name in the text that leads nowhere is a warning.
nitpicky = True
