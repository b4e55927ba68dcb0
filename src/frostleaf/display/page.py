"""A page for a notebook: HTML with the style and the script that it needs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .markup import Markup, element


def page(*contents: Markup | None, title: str = "") -> Markup:
    """Return contents as a page, below a title if there is one."""
    above = element("div", element("b", title, class_="root"), class_="top") if title else None
    return element("div", _style(), above, *contents, _script(), class_="frostleaf")


@cache
def _style() -> Markup:
    return element("style", Markup(_file("style.css")))


@cache
def _script() -> Markup:
    return element("script", Markup(_file("script.js")))


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")
