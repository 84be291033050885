"""HTML pages from templates. Whatever is put into one is escaped, and a name that is missing is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render(template: Path, /, **values: Any) -> str:
    """The page that a template makes of values. Imports Jinja2."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
