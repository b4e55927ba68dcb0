"""The directive that lists public names, and the check that each of them is on a page.

``.. public:: frostleaf.nn`` lists a package; the option ``:first: nn.linear`` says which files come first.
``.. public:: frostleaf`` with the option ``:from: io transforms.jit`` lists what these chapters define of it, in their order.
Each file is a section that begins with the first paragraph of the file's docstring; with the option ``:flat:`` there are no
sections.
"""

import importlib
import inspect
from types import ModuleType
from typing import ClassVar

from docutils.parsers.rst import directives
from references import ROOT, find
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import signature, stringify_signature

logger = logging.getLogger(__name__)

KINDS = ["function", "class", "data", "exception"]


def public_names(space=ROOT):
    """Yield the dotted names of all that is public, as programs write them."""
    for name in find(space).__all__:
        yield f"{space}.{name}"
        if is_space(getattr(find(space), name)):
            yield from public_names(f"{space}.{name}")


def is_space(value):
    """Return whether a value is a module of public names."""
    return isinstance(value, ModuleType) and value.__name__.startswith(f"{ROOT}.")


def is_chapter(value):
    """Return whether a value is a module of public names that has a page of its own."""
    return is_space(value) and value.__name__.count(".") == 1


def home(value):
    """Return the name of the file, or of the folder in a chapter, that defines a value; MLX's have none."""
    module = value.__name__ if isinstance(value, ModuleType) else value.__module__
    return ".".join(module.split(".")[:3]) if module.startswith(f"{ROOT}.") else ""


class Public(SphinxDirective):
    required_arguments = 1
    option_spec: ClassVar = {"from": directives.unchanged, "first": directives.unchanged, "flat": directives.flag}

    def run(self):
        space = self.arguments[0]
        chapters = [f"{ROOT}.{each}" for option in ("from", "first") for each in self.options.get(option, "").split()]
        for chapter in chapters:
            importlib.import_module(chapter)  # an error if there is none
        public = {name: getattr(find(space), name) for name in find(space).__all__}
        homes = {name: home(value) for name, value in public.items() if not is_chapter(value)}
        text = [] if "from" in self.options else [f".. py:module:: {space}", ""]
        for file in in_order({*homes.values()}, chapters, all_of_them="from" not in self.options):
            values = {name: public[name] for name, where in homes.items() if where == file}
            text += [] if "flat" in self.options else heading(file)
            text += entries(values, space) if file else entries_of_mlx(values, space)
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def in_order(files, chapters, all_of_them):
    """Return the files of some chapters in the order of these; and all others after them, at the end what is MLX's own."""

    def place(file):
        return next((number for number, each in enumerate(chapters) if f"{file}.".startswith(f"{each}.")), len(chapters))

    chosen = [file for file in files if all_of_them or place(file) < len(chapters)]
    return sorted(chosen, key=lambda file: (file == "", place(file), file))


def heading(file):
    """Return the lines of a section's head: the file's name in words, and what its docstring says first."""
    title = file.rpartition(".")[2].replace("_", " ").capitalize() or "MLX's own"
    about = inspect.getdoc(importlib.import_module(file)) if file else "These are MLX's functions and modules themselves."
    return [title, "-" * len(title), "", (about or "").split("\n\n")[0], ""]


def entries(values, space):
    """Yield the lines that have autodoc describe values: functions, classes, errors, each in the order of their files."""

    def place(name):
        there = [*vars(importlib.import_module(values[name].__module__))]
        return KINDS.index(kind(values[name])), values[name].__module__, there.index(name) if name in there else len(there)

    modules = {name: value for name, value in values.items() if is_space(value)}
    for name, module in modules.items():
        yield from [f".. py:module:: {space}.{name}", ""]
        yield from entries({each: getattr(module, each) for each in module.__all__}, f"{space}.{name}")
        yield from [f".. py:currentmodule:: {space}", ""]
    for name in sorted(values.keys() - modules.keys(), key=place):
        value = values[name]
        source = ModuleAnalyzer.for_module(value.__module__)
        source.analyze()
        source.overloads.clear()  # one signature says what they all do
        yield from [f".. auto{kind(value)}:: {space}.{name}", "   :members:" if kind(value) == "class" else "", ""]


def kind(value):
    """Return what the directive that describes a value is called."""
    if not isinstance(value, type):
        return "function" if callable(value) else "data"
    return "exception" if issubclass(value, BaseException) else "class"


def entries_of_mlx(values, space):
    """Yield the lines that list what is MLX's own, with a link to each."""
    for name, value in values.items():
        is_module = isinstance(value, ModuleType)
        kind, shown = ("data", "") if is_module else ("function", stringify_signature(signature(value), show_annotation=False))
        whole = value.__name__ if is_module else ".".join([*value.__module__.split(".")[:2], name])
        yield from [f".. py:{kind}:: {name}{shown}", "", f"   See :py:obj:`{whole}`.", ""]


def skip(app, what, name, member, skipped, options):
    """Leave out the fields of named tuples, which the class's docstring describes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def check(app, env):
    """Warn of public names that no page has. One that two pages have is told by Sphinx."""
    for name in public_names():
        if name not in env.domains["py"].objects:
            logger.warning("%s is public and on no page", name)


def setup(app):
    app.add_directive("public", Public)
    app.connect("autodoc-skip-member", skip)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
