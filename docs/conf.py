"""The site of the documentation: ``make docs`` builds it into build/docs. A link that leads nowhere is an error."""

from __future__ import annotations

from importlib import metadata

project = "reelquant"
release = metadata.version("reelquant")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
