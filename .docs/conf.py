"""The reference, made of the docstrings: sphinx-build -W -n .docs .docs/_build."""

import sys
from pathlib import Path

import frostleaf

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "frostleaf"
version = release = frostleaf.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "formulas", "public", "references", "several"]
default_role = "py:obj"  # a word in single backticks is a name, and an error if it is none

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
napoleon_custom_sections = ["Shapes"]
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "frostleaf"
html_static_path = ["static"]
html_css_files = ["reference.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = html_show_sphinx = False
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "default", "github-dark"
