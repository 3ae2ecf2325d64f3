"""How pages are made: one environment for every template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from emoreg.files import write_atomic


def write_page(
    template: str, context: Mapping[str, Any], filters: Mapping[str, Callable[..., str]], path: Path
) -> Path:
    """Render a template of the package into a file, which is replaced whole or not at all."""
    environment = Environment(
        loader=PackageLoader("emoreg"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return write_atomic(path, environment.get_template(template).render(context))
