"""Rendering a template of this folder into one self-contained HTML file."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from spikeexport.calibration.foundation.files import write_text


def render(template: str, title: str, **values: Any) -> str:
    """Returns the page; every value is escaped unless it is `Markup`."""
    environment = Environment(
        loader=PackageLoader("spikeexport.report", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = files("spikeexport.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        title=title, style=Markup(style), version=version("spikeexport"), **values
    )


def write_page(path: Path, template: str, title: str, **values: Any) -> None:
    """Renders a page into `path` atomically.

    Raises:
        SpikeExportError: The file system refused.
    """
    write_text(path, render(template, title, **values))
