"""Sphinx configuration: ``sphinx-build -n -W --keep-going docs OUT`` builds every page, and any warning fails."""

from pathlib import Path

_version: dict[str, str] = {}
exec((Path(__file__).parent.parent / "ciruela" / "_version.py").read_text(encoding="utf-8"), _version)

project = "ciruela"
author = "The ciruela developers"
copyright = "2026, The ciruela developers"
version = release = _version["__version__"]

extensions: list[str] = []
nitpicky = True
exclude_patterns = ["_build"]
primary_domain = None
highlight_language = "none"
smartquotes = False

html_theme = "furo"
html_title = f"ciruela {release}"
html_copy_source = False
