"""Sphinx settings: furo, MyST, and the pages of the rooms drawn from their docstrings."""

import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import phalanx

project = "Phalanx"
author = "the Phalanx authors"
copyright = f"{date.today().year}, {author}"
release = version = phalanx.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "rooms"]
exclude_patterns = ["_build", "measurements/*"]
html_theme = "furo"
html_title = f"Phalanx {release}"
html_static_path = ["_static"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autoclass_content = "both"  # modules describe their arguments under __init__
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
