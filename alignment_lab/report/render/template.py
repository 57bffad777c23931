"""Fill a Jinja template of this directory and write the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...runtime.files import utc_now, write_atomic
from . import formatting

ANSWER_LIMIT = 2_000  # characters of an answer on a page


def write_page(path: Path, template: str, context: Mapping[str, object]) -> Path:
    """Render a template to `path`. Everything is escaped: generated text is never taken for HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "formatting": formatting,
        "written": utc_now(),
        "answer_limit": ANSWER_LIMIT,
    }
    write_atomic(path, environment.get_template(template).render(context))
    return path
