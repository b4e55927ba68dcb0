"""Arrays that mean something only together with a static value, such as those of an optimizer's state with its rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..core.fields import gives_meaning
from ..core.instance import Metadata
from ..core.structure import Structure, specs_in
from ..core.words import keystr
from .description import Fact, enclosing, is_leaf


def other_meanings(structure: Structure, in_file: Iterable[Fact], in_like: Iterable[Fact]) -> dict[str, str]:
    """Return the modules whose arrays mean something else in a file, and for each the static value that tells so, as paths.

    Where the class tells so, that is the path of the module.

    Args:
        structure: That of the tree into which the file is read.
        in_file: The facts about the tree in the file.
        in_like: Those about the other.
    """
    if not any(_deciding(cls) for cls in structure.module_classes()):
        return {}
    modules = [(path, spec[0]) for path, spec in specs_in(structure) if _is_of_module(spec)]
    deciding = {keystr((*path, name)): keystr(path) for path, cls in modules for name in _deciding(cls)}
    there, wanted = [
        {fact.path: fact.text for fact in facts if fact.aspect == "static" and fact.path in deciding}
        for facts in (in_file, in_like)
    ]
    both = [path for path in wanted if path in there]
    kinds, own = [
        {fact.path: fact.text.rpartition(".")[2] for fact in facts if not fact.aspect and fact.path in deciding.values()}
        for facts in (in_file, in_like)
    ]
    # As a flattened optimizer's state has the step of a plain one's, and its moments under other names.
    unlike = {deciding[path]: deciding[path] for path in both if kinds.get(deciding[path]) != own.get(deciding[path])}
    return unlike | {deciding[path]: path for path in both if there[path] != wanted[path]}


def without_meaning(facts: Sequence[Fact], foreign: Mapping[str, str]) -> list[Fact]:
    """Return facts without those about arrays and numbers that some modules hold."""
    return [fact for fact in facts if not (is_leaf(fact) and _holders(fact, foreign))]


def with_deciding(facts: Sequence[Fact], others: Iterable[Fact], foreign: Mapping[str, str]) -> list[Fact]:
    """Return facts with those of others that tell what the arrays among them mean."""
    held = {path for fact in facts if is_leaf(fact) for path in _holders(fact, foreign)}
    missing = {foreign[path] for path in held} - {fact.path for fact in facts if fact.aspect == "static"}
    return [*facts, *[fact for fact in others if fact.aspect == "static" and fact.path in missing]]


def _holders(fact: Fact, foreign: Mapping[str, str]) -> list[str]:
    return [path for path in enclosing(fact.path) if path in foreign] if foreign else []


def _is_of_module(spec: object) -> bool:
    return isinstance(spec, tuple) and isinstance(spec[1], Metadata)


def _deciding(cls: type) -> list[str]:
    return [name for name, field in cls.__frostleaf__.fields.items() if gives_meaning(field)]  # type: ignore[attr-defined]
