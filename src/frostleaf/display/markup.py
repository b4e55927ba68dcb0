"""HTML is made here and nowhere else: text becomes part of it by :func:`element`, which escapes."""

from __future__ import annotations

import html
from typing import Any

from ..core.words import printable


class Markup(str):
    """Text that is HTML. Any other text is escaped where it becomes part of some."""

    __slots__ = ()


# What has no contents, and no end.
_EMPTY = {"br", "hr", "img", "input"}


def element(tag: str, *contents: Any, **attributes: Any) -> Markup:
    """Return an element of HTML. Contents and attributes are escaped, but for :class:`Markup` in the contents.

    Args:
        tag: The name of the element.
        *contents: Texts, elements, and ``None`` for nothing.
        **attributes: The attributes; ``class_`` is ``class``, and ``data_name`` is ``data-name``. ``True`` is one without a
            value, and ``None`` or ``False`` none.

    >>> element("b", "a < b", element("i", "c"), class_='"', hidden=True)
    '<b class="&quot;" hidden>a &lt; b<i>c</i></b>'
    """
    inside = "".join([each if type(each) is Markup else escape(each) for each in contents if each is not None])
    if not attributes:
        return Markup(f"<{tag}>{inside}</{tag}>")
    shown = [_attribute(name, value) for name, value in attributes.items() if value is not None and value is not False]
    return Markup(f"<{tag}{''.join(shown)}>" if tag in _EMPTY else f"<{tag}{''.join(shown)}>{inside}</{tag}>")


def escape(text: str) -> str:
    """Return a text as HTML that shows it. What can't be seen, such as half a character, is shown as Python writes it."""
    if text.isalnum() and text.isascii():  # most names
        return text
    return html.escape(printable(text))


def _attribute(name: str, value: Any) -> str:
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
