"""Formulas as MathML, which browsers draw themselves: the pages load nothing. A formula that can't be read is an error."""

from html import escape

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)


def read(app, doctree):
    """Put its MathML into each formula, whatever the pages are made into."""
    for kind, display in (nodes.math, "inline"), (nodes.math_block, "block"):
        for node in doctree.findall(kind):
            tex = node.astext().strip()
            lines = rf"\begin{{align*}}{tex}\end{{align*}}" if r"\\" in tex else tex
            try:
                node["mathml"] = convert(lines, display=display)
            except Exception:  # latex2mathml's errors have no class in common
                node["mathml"] = escape(tex)
            if "\\" in node["mathml"]:
                logger.warning("can't read the formula %s", tex, location=node)


def write(translator, node):
    translator.body.append(node["mathml"])
    raise nodes.SkipNode


def setup(app):
    app.connect("doctree-read", read)
    app.add_html_math_renderer("mathml", (write, None), (write, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
