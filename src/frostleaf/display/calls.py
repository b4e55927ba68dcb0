"""Which modules of a tree a function calls while it is traced, and the shapes of what they return.

Python itself tells of every call (:func:`sys.setprofile`), so that modules know nothing of this, and calls cost nothing when
nobody asks.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, FrameType, TracebackType
from typing import Any

from mlx.nn.layers.base import Module as MLXModule

from ..core.definition import Node
from ..core.hidden import inside_of
from ..core.instance import is_finished
from ..core.refused import HiddenArrayError
from ..core.shapes import ShapeDtypeStruct
from ..core.structure import flat_of, unflatten
from ..core.words import Path, describe, keystr, listed, with_article
from ..transforms.binding import unbind
from ..transforms.context import override, setting
from ..transforms.eval_shape import eval_shape
from ..transforms.wrapping import RUNS_LATER, require_runs_when_called
from ..tree.walk import Descend, rewrite

# For each module that was called, by path: what each call returned, with a shape for each array; None if there was none.
# None for a module of which nobody knows whether it was called.
Calls = dict[Path, list[Any] | None]

WENT_WRONG = "\n\nThis was in {place}, {cls}{given}."


def modules_in(tree: Any) -> list[tuple[Path, Node]]:
    """Return the path and the module of every module in a tree, from the outside in."""
    found: list[tuple[Path, Node]] = []

    def enter(path: Path, value: Any) -> Any:
        if isinstance(value, Node):
            found.append((path, value))
        return Descend

    rewrite(tree, enter)
    return found


def calls_in(fn: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Calls:
    """Trace a call and return what the modules of a model returned in it. Nothing is computed.

    Args:
        fn: The function, called with the model before the other arguments.
        model: A tree of modules.
        args, kwargs: The other arguments: trees of arrays, or of shapes.

    Raises:
        TypeError: If ``fn`` is a generator or coroutine function.
        Exception: What the call raises; its message says in which module that was.
    """
    require_runs_when_called(fn, RUNS_LATER.format(transformation="fl.summary"))
    watched = Watched()

    @functools.wraps(fn)
    def traced(model: Any, /, *args: Any, **kwargs: Any) -> Any:
        with setting(watching, watched), override(plain=True):
            watched.run(model, lambda: fn(model, *args, **kwargs))
        return ()

    try:
        eval_shape(traced, model, *args, **kwargs)
    except Exception as error:
        watched.explain(error)
        raise
    return {**watched.calls, **dict.fromkeys(watched.unknown())}


def bound_to(fn: Any) -> tuple[Callable[..., Any] | None, Any]:
    """Return what a call of a module, or of its method, runs, and the module; of anything else ``None`` and itself."""
    if isinstance(fn, functools.partial) or not callable(fn):
        return None, fn
    inner, bound, _ = unbind(fn)
    return (inner, bound[0]) if bound else (None, fn)


class Watched:
    """A tree whose modules are watched while a function runs.

    Attributes:
        calls: What they returned.
    """

    def __init__(self) -> None:
        self.calls: dict[Path, list[Any]] = {}
        self._strangers: set[Any] = set()  # the kinds of those that were called and are nowhere in the tree
        self._paths: dict[int, Path] = {}
        self._kept: list[Any] = []  # so that no id is used again
        self._by_leaves: dict[Any, Path] = {}
        self._classes: set[type] = set()
        self._codes: set[CodeType] = set()
        self._running: dict[FrameType, Path] = {}
        self._places: list[tuple[Path, Node]] = []

    def _add(self, tree: Any, above: Path) -> None:
        for path, module in modules_in(tree):
            self._paths.setdefault(id(module), (*above, *path))
            self._by_leaves.setdefault(_leaves_key(module), (*above, *path))
            self._kept.append(module)
            self._add_class(getattr(type(module), "__mlx__", type(module)))

    def _add_class(self, cls: type) -> None:
        if cls not in self._classes:
            self._classes.add(cls)
            self._codes.update(_codes(cls))

    def add_live(self, node: Any, root: Any, paths: dict[int, Path]) -> None:
        """Watch the modules of MLX, by id, in which the code of a wrapped module runs."""
        above = self._path(node)
        if above is None:
            self._strangers.update(_kind(module) for _, module in modules_in(node))
            return
        self._paths.update({number: (*above, *path) for number, path in paths.items()})
        self._kept.append(root)
        modules: Any = MLXModule.modules
        for module in modules(root):  # of which those that stand for native ones have other classes than these
            self._add_class(type(module))

    def _path(self, module: Any) -> Path | None:
        """Return where a module is; also one that was made from one in the tree and has its arrays, as ``module.eval()``."""
        if id(module) not in self._paths and isinstance(module, Node) and is_finished(module):
            path = self._by_leaves.get(_leaves_key(module))
            if path is not None:
                self._add(module, path)
        return self._paths.get(id(module))

    def run(self, tree: Any, call: Callable[[], Any]) -> None:
        """Call a function while a tree is watched.

        Args:
            tree: The tree, in which each place has a module of its own, as it is when a transformation has put it together.
            call: The function.
        """
        self._add(tree, ())
        self._places = modules_in(tree)
        before = sys.getprofile()
        sys.setprofile(self._on_event)
        try:
            result = call()
        finally:
            sys.setprofile(before if callable(before) else None)  # Python 3.11 can't go on with a profiler written in C
        self.calls.setdefault((), [_shapes(result)])  # what is called need not be a module: fl.jit(model)

    def unknown(self) -> list[Path]:
        """Return where modules are that were not called, unless one was that was made from them with arrays of its own."""
        if not self._strangers:
            return []
        return [path for path, module in self._places if path not in self.calls and _kind(module) in self._strangers]

    def _on_event(self, frame: FrameType, event: str, result: Any) -> None:
        if frame.f_code not in self._codes:
            return
        if event == "call":
            path = self._path_in(frame)
            if path is None:
                self._strangers.add(_kind(_bound_in(frame)))
            elif path not in self._running.values():  # and is not a method that a method of it calls
                self._running[frame] = path
        elif event == "return" and frame in self._running:
            path = self._running.pop(frame)
            shapes = _shapes(result)
            if shapes is not None or frame.f_code.co_name == "__call__":
                self.calls.setdefault(path, []).append(shapes)

    def _path_in(self, frame: FrameType) -> Path | None:
        """Return where the module is whose method runs in a frame."""
        return self._path(_bound_in(frame))

    def explain(self, error: Exception) -> None:
        """Say in the message of an error in which module it was."""
        frames = [frame for frame in _frames(error.__traceback__) if frame.f_code in self._codes]
        found = next(((path, frame) for frame in reversed(frames) if (path := self._path_in(frame)) is not None), None)
        if found is None or not isinstance(error.args[0] if error.args else "", str):
            return
        path, frame = found
        names = frame.f_code.co_varnames[1 : frame.f_code.co_argcount]
        given = listed(f"{name} is {describe(frame.f_locals[name])}" for name in names if name in frame.f_locals)
        said = WENT_WRONG.format(
            place=keystr(path) or "the model itself",
            cls=with_article(type(frame.f_locals[frame.f_code.co_varnames[0]]).__name__),
            given=f", where {given}" if given else "",
        )
        error.args = (f"{error.args[0]}{said}", *error.args[1:]) if error.args else (said.strip(),)


# What is watched where this runs, so that a wrapped module can tell in which modules of MLX its code runs.
watching: ContextVar[Watched | None] = ContextVar("watching", default=None)


def _bound_in(frame: FrameType) -> Any:
    """Return what a function is a method of, if it is one: its first argument."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _kind(module: Any) -> Any:
    """Return what a module has in common with those that are made from it by a cast, a batch or gradients."""
    names = flat_of(module).structure.leaf_names() if isinstance(module, Node) and is_finished(module) else ()
    return type(module), *names


def _leaves_key(module: Node) -> Any:
    leaves = flat_of(module).leaves
    return (type(module), *map(id, leaves)) if leaves else id(module)  # two without arrays can't be told apart


def _codes(cls: type) -> Iterator[CodeType]:
    """Yield the code of a class's ``__call__`` and of its public methods, without those that every module has."""
    roots = {*MLXModule.__mro__, *Node.__subclasses__()}
    for base in cls.__mro__:
        for name, value in vars(base).items() if base not in roots else ():
            if callable(value) and (name == "__call__" or not name.startswith("_")):
                function = inspect.unwrap(value)
                if inspect.isfunction(function):
                    yield function.__code__


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _shapes(result: Any, deepest: int = 4) -> Any:
    """Return a tree with a shape for each array, ``None`` for no arrays. What hides some is the dict of its attributes."""
    try:
        flat = flat_of(result)
    except HiddenArrayError:
        inside = {name: _shapes(each, deepest - 1) for name, each in inside_of(result)} if deepest else {}
        return {name: each for name, each in inside.items() if each is not None} or None
    except TypeError:
        return None
    shapes = [ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in flat.leaves]
    return unflatten(flat.structure.spec, iter(shapes)) if shapes else None
