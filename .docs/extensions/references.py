"""References: what stands in them is looked for in Python, and is an error if it isn't there.

The docstrings' names are those of the package that they are public in; one that is written with another name of the same object
leads to that as well. ``fl.jit`` in double backticks is a link too. Names of MLX link to its documentation; names of Python and
of other libraries stay text.
"""

import importlib
import re
from contextlib import suppress
from functools import cache
from types import ModuleType

from docutils import nodes
from sphinx import addnodes
from sphinx.util.nodes import make_refnode

ROOT, SHORT = "frostleaf", "fl"
WRITTEN = {ROOT: SHORT, "mlx.core": "mx"}
MLX_SEARCH = "https://ml-explore.github.io/mlx/build/html/search.html?q="


@cache
def find(name):
    """Return what a dotted name stands for; raise ``LookupError`` if nothing does."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                raise LookupError(name)
            found = getattr(found, part)
        return found
    raise LookupError(name)


@cache
def public_names(names):
    """Return for what each of the documented names stands for (by ``id``) that name; those of instances stand for nothing."""
    found = {}
    for name in names:
        with suppress(LookupError):
            found.setdefault(id(find(name)), name)
    return found


def resolve(app, env, node, text):
    """Return a link for a name that no page has as it is written, or the text alone; nothing if there is no such name."""
    if node.get("refdomain") != "py":
        return None
    target, module, cls = node["reftarget"], node.get("py:module"), node.get("py:class")
    objects = env.domains["py"].objects
    exists = False
    for name in (f"{module}.{cls}.{target}", f"{module}.{target}", target, f"{ROOT}.{target}", f"builtins.{target}"):
        try:
            value = find(name)
        except LookupError:
            continue
        page, cls_of_it = public_names(tuple(objects)).get(id(value)), name.rpartition(".")[0]
        if page is None and cls_of_it in objects and objects[cls_of_it].objtype == "class":
            page = cls_of_it  # it inherits the method from one that is not public
        if page is not None:
            entry = objects[page]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text, page)
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or name
        if home.startswith("mlx."):
            return nodes.reference("", "", text, internal=False, refuri=f"{MLX_SEARCH}{name}")
        if not home.startswith(ROOT):
            return text
        exists = True
    # In annotations there may be classes that are not public.
    return text if is_in_signature(node) or (exists and isinstance(text, addnodes.literal_emphasis)) else None


def is_in_signature(node):
    """Return whether a name is an annotation, where classes and type variables that are not public may stand."""
    while node is not None and not isinstance(node, addnodes.desc_signature):
        node = node.parent
    return node is not None


def prepare(app, doctree):
    """Make links of names in double backticks, and show names as programs write them: fl.jit, mx.float32."""
    for literal in [*doctree.findall(nodes.literal)]:
        match = re.match(rf"{SHORT}((\.[A-Za-z]\w*)+)", literal.astext())
        if match and not isinstance(literal.parent, addnodes.pending_xref | nodes.reference):
            target = f"{ROOT}{match[1]}"
            attributes = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refdoc": app.env.docname}
            link = addnodes.pending_xref("", refwarn=True, refexplicit=True, **attributes)
            literal.replace_self(link)
            link += literal
    for text in [*doctree.findall(nodes.Text)]:
        for name, short in WRITTEN.items():
            if text.startswith(f"{name}.") and (isinstance(text.parent, nodes.literal) or is_in_signature(text)):
                text.parent.replace(text, nodes.Text(f"{short}{text.removeprefix(name)}"))


def setup(app):
    app.connect("doctree-read", prepare)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
