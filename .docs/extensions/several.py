"""Entries of docstrings that describe several names at once, ``before, after: ...``, which napoleon takes one by one."""

import re

SECTION = re.compile(r"(Args|Attributes|Raises|Warns):$")
ENTRY = re.compile(r"(?P<indent> +)(?P<names>[\w.*]+(?:, [\w.*]+)+): (?P<text>.*)")


def split(app, what, name, value, options, lines):
    """Repeat the text of such an entry for each of its names."""
    taken, lines[:] = [*lines], []
    in_section = False
    while taken:
        line = taken.pop(0)
        if line and not line.startswith(" "):
            in_section = bool(SECTION.match(line))
        if not (in_section and (entry := ENTRY.fullmatch(line))):
            lines.append(line)
            continue
        below = []
        while taken and taken[0].startswith(f"{entry['indent']} "):
            below.append(taken.pop(0))
        for each in entry["names"].split(", "):
            lines += [f"{entry['indent']}{each}: {entry['text']}", *below]


def setup(app):
    app.connect("autodoc-process-docstring", split, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
