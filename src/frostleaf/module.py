"""``Module``: what models are made of, and a table of contents of what can be done with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from . import io
from .core import fields
from .core.annotations import Self, dataclass_transform
from .core.arguments import require_bool
from .core.construction import evolve
from .core.definition import Node
from .core.dropped import returns_copy
from .core.instance import metadata_of
from .core.shown import ShownTree
from .display.text import text
from .edits import casting, freezing, modes, tying, updating, views
from .edits.keys import Keyed
from .edits.selection import Selection
from .tree.selecting import Where


@dataclass_transform(field_specifiers=(fields.parameter, fields.buffer, fields.static), eq_default=False)
class Module(Keyed, Node, ShownTree):
    """A model, or a part of one: a frozen tree of arrays that is edited by making copies.

    A subclass declares its fields in its body, and either has an ``__init__`` that assigns them to ``self`` or gets one from
    attrs. When the outermost ``__init__`` returns, the module is finished: lists have become tuples and dicts read-only,
    nothing can be assigned any more, and every method that changes something returns a new module that shares the rest.

    A bare annotation or :func:`frostleaf.parameter` declares parameters, :func:`frostleaf.buffer` arrays that are not trained,
    and :func:`frostleaf.static` what must hold none (numbers may be bare too). Names that begin with ``_`` are not parameters.

    Raises:
        TypeError: If a name is assigned that the class does not declare, if a field is left unset, if a static field is given
            an array or a value that can't be hashed, or if a field hides one of the methods below.
        attrs.exceptions.FrozenInstanceError: If an attribute of a finished module is set or deleted.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Affine(fl.Module):
    ...     weight: mx.array
    ...     bias: mx.array
    ...     def __init__(self, dims):
    ...         self.weight = mx.ones((dims, dims))
    ...         self.bias = mx.zeros(dims)
    ...     def __call__(self, x):
    ...         return x @ self.weight + self.bias
    >>> model = Affine(2)
    >>> model
    Affine(weight=f32[2,2], bias=f32[2])
    >>> half = model.astype(mx.float16)
    >>> half.freeze(keys="bias")
    Affine(weight=f16[2,2], bias=❄f16[2])
    >>> model.bias = None
    Traceback (most recent call last):
    ...
    frostleaf.core.definition.FrozenModuleError: can't set Affine.bias: a finished module never changes. .replace(bias=...)
    returns a new module that shares the rest.
    """

    if TYPE_CHECKING:
        __call__: Any  # so that one that is jitted may take its place

    def __repr__(self) -> str:
        return text(self)

    # Looking into a module

    @property
    def training(self) -> bool:
        """Whether the module is in training mode. See :meth:`train`.

        >>> import frostleaf as fl
        >>> fl.nn.Dropout().training
        True
        """
        return metadata_of(self).training

    @property
    def state(self) -> dict[str, Any]:
        """All arrays of the module, private ones and buffers included, as fresh nested dicts and lists.

        >>> import frostleaf as fl
        >>> list(fl.nn.BatchNorm(2).state)
        ['weight', 'bias', 'running_mean', 'running_var']
        """
        return self.filter_and_map(lambda module, key, value: True)

    def parameters(self) -> dict[str, Any]:
        """Return the arrays that are saved with the model, as fresh nested dicts and lists with MLX's keys.

        >>> import frostleaf as fl, mlx.core as mx
        >>> class Pair(fl.Module):
        ...     both: list
        >>> Pair([mx.array(1), mx.array(2)]).parameters()
        {'both': [array(1, dtype=int32), array(2, dtype=int32)]}
        """
        return views.parameters(self)

    def trainable_parameters(self) -> dict[str, Any]:
        """Return the parameters that are neither frozen nor buffers, as :meth:`parameters` returns them.

        >>> import frostleaf as fl
        >>> list(fl.nn.Linear(2, 2).freeze(keys="bias").trainable_parameters())
        ['weight']
        """
        return views.trainable_parameters(self)

    def children(self) -> dict[str, Any]:
        """Return the modules that this one holds, as a dict of modules and nested containers of them.

        >>> import frostleaf as fl
        >>> fl.nn.Sequential(fl.nn.Identity()).children()
        {'layers': [Identity()]}
        """
        return views.children(self)

    def leaf_modules(self) -> dict[str, Any]:
        """Return the modules below this one that hold no other, in nested dicts and lists.

        >>> import frostleaf as fl
        >>> fl.nn.Sequential(fl.nn.Sequential(fl.nn.Identity())).leaf_modules()
        {'layers': [{'layers': [Identity()]}]}
        """
        return views.leaf_modules(self)

    def modules(self) -> list[Any]:
        """Return this module and every one below it, in MLX's order.

        >>> import frostleaf as fl
        >>> len(fl.nn.Sequential(fl.nn.Identity(), fl.nn.Identity()).modules())
        3
        """
        return [module for _, module in self.named_modules()]

    def named_modules(self) -> list[tuple[str, Any]]:
        """Return pairs of a path and a module, for this module (with an empty path) and every one below it, in MLX's order.

        >>> import frostleaf as fl
        >>> [name for name, _ in fl.nn.Sequential(fl.nn.Identity(), fl.nn.Identity()).named_modules()]
        ['', 'layers.1', 'layers.0']
        """
        return views.named_modules(self)

    def filter_and_map(
        self,
        filter_fn: Callable[[Any, str, Any], bool],
        map_fn: Callable[[Any], Any] | None = None,
        is_leaf_fn: Callable[[Any, str, Any], bool] | None = None,
    ) -> dict[str, Any]:
        """Return the contents of the module, filtered and mapped, as fresh nested dicts and lists.

        Args:
            filter_fn: Called with a module, a key in it (``"layers.0"`` inside a container) and the value there; says if
                it is kept. :meth:`valid_parameter_filter` is one.
            map_fn: Called with each leaf that is kept. Default: the identity.
            is_leaf_fn: Called like ``filter_fn``; returns whether the value is a leaf. Default: all but modules, dicts, lists.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 3).filter_and_map(fl.Module.valid_parameter_filter, lambda array: array.shape)
        {'weight': (3, 2), 'bias': (3,)}
        """
        return views.filter_and_map(self, filter_fn, map_fn, is_leaf_fn)

    @staticmethod
    def is_module(value: Any) -> bool:
        """Return whether ``value`` is a module.

        >>> import frostleaf as fl
        >>> fl.Module.is_module(fl.nn.Identity()), fl.Module.is_module(3)
        (True, False)
        """
        return isinstance(value, Module)

    valid_child_filter = staticmethod(views.valid_child)
    valid_parameter_filter = staticmethod(views.valid_parameter)
    trainable_parameter_filter = staticmethod(views.trainable_parameter)

    # Editing a copy

    @returns_copy()
    def replace(self, **changes: Any) -> Self:
        """Replace fields in a copy that shares the rest.

        The fields' converters and validators run, and containers become immutable. :meth:`at` reaches deeper.

        Raises:
            TypeError, ValueError: If a name is no field, a field can't hold the value, or a tied place would be empty.

        >>> import frostleaf as fl, mlx.core as mx
        >>> layer = fl.nn.Linear(2, 2)
        >>> other = layer.replace(bias=mx.ones(2))
        >>> other.bias, other.weight is layer.weight
        (array([1, 1], dtype=float32), True)
        """
        tying.require_places(self, {(name,): value for name, value in changes.items()})
        return evolve(self, changes)

    __replace__ = replace

    def at(self, where: Where) -> Selection[Self]:
        """Return a :class:`Selection` of parts of the module, to read or to edit in a copy.

        Args:
            where: A path (``"layers.0.weight"``), a glob (``"layers.*.bias"``, or ``"encoder.**"`` for all arrays in there), a
                class (``fl.nn.Linear``), a predicate called with each array's dotted path and the array, or a list of these.

        Raises:
            TypeError: If ``where`` is none of these.
            LookupError: From the selection's methods, if it is empty.

        >>> import frostleaf as fl, mlx.core as mx
        >>> model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 1))
        >>> model.at("layers.0.bias").set(mx.ones(2)).at(fl.nn.Linear).paths()
        ['layers.0', 'layers.1']
        >>> model.at("layers.0.wieght").get()
        Traceback (most recent call last):
        ...
        LookupError: 'layers.0.wieght' selects nothing in this Sequential. The nearest paths are 'layers.0.weight', ...
        """
        return Selection(self, where)

    @returns_copy()
    def apply(self, map_fn: Callable[[mx.array], mx.array], filter_fn: Callable[[Any, str, Any], bool] | None = None) -> Self:
        """Map the parameters in a copy.

        Args:
            map_fn: Called with each array; returns the new one.
            filter_fn: Selects the arrays, as in :meth:`filter_and_map`. Default: :meth:`valid_parameter_filter`.

        Raises:
            ValueError: If ``map_fn`` returns something that is not an array.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.Linear(1, 2).apply(mx.zeros_like).bias
        array([0, 0], dtype=float32)
        """
        return updating.apply(self, map_fn, filter_fn)

    @returns_copy()
    def astype(self, dtype: mx.Dtype, predicate: Callable[[mx.Dtype], bool] | None = casting.is_floating) -> Self:
        """Cast arrays in a copy; those that have the dtype already, or are not selected, are shared.

        Args:
            dtype: The new dtype.
            predicate: Called with the dtype of each array; says whether to cast it. ``None`` casts every array. Default: those
                of a floating-point dtype, buffers and the scales of quantized weights included; but not those of a field
                declared with ``buffer(cast=False)``, such as an optimizer's learning rate.

        Raises:
            TypeError: If ``dtype`` is not an ``mx.Dtype``.

        >>> import frostleaf as fl, mlx.core as mx
        >>> layer = fl.nn.Linear(2, 2, bias=False)
        >>> layer.astype(mx.bfloat16), layer, layer.astype(mx.float32) is layer
        (Linear(weight=bf16[2,2], bias=None), Linear(weight=f32[2,2], bias=None), True)
        """
        return casting.astype(self, dtype, predicate)

    @returns_copy()
    def set_dtype(self, dtype: mx.Dtype, predicate: Callable[[mx.Dtype], bool] | None = casting.is_floating) -> Self:
        """Cast arrays in a copy, as :meth:`astype` does; MLX's method of this name changes the module.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.Linear(2, 2).set_dtype(mx.float16)
        Linear(weight=f16[2,2], bias=f16[2])
        """
        return casting.astype(self, dtype, predicate)

    @returns_copy()
    def with_frozen(self, where: Where, frozen: bool = True) -> Self:
        """Freeze what ``where`` selects (see :meth:`at`) in a copy, or make it trainable with ``frozen=False``.

        Raises:
            LookupError: If nothing is selected, a path leads to a static field, or the arrays there are tied to ones elsewhere.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).with_frozen("bias")
        Linear(weight=f32[2,2], bias=❄f32[2])
        """
        return self.at(where).freeze() if require_bool("frozen", frozen) else self.at(where).unfreeze()

    @returns_copy(by_name="keys")
    def freeze(self, *, recurse: bool = True, keys: str | Iterable[str] | None = None, strict: bool = False) -> Self:
        """Freeze parameters in a copy: no gradient is computed for them.

        Args:
            recurse: Whether the modules below are frozen too. Default: ``True``.
            keys: The fields to freeze, such as ``"bias"``, in each module that has them. Default: all parameters.
            strict: Whether a key that no module has is an error. Default: ``False``.

        Raises:
            KeyError: If ``strict`` and a key is nowhere in the model (or, without ``recurse``, not in this module).

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).freeze()
        Linear(weight=❄f32[2,2], bias=❄f32[2])
        """
        return freezing.freeze(self, recurse, keys, strict, frozen=True)

    @returns_copy(by_name="keys")
    def unfreeze(self, *, recurse: bool = True, keys: str | Iterable[str] | None = None, strict: bool = False) -> Self:
        """Make parameters trainable again in a copy; arguments and errors as in :meth:`freeze`. Buffers are never trained.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).freeze().unfreeze(keys="bias")
        Linear(weight=❄f32[2,2], bias=f32[2])
        """
        return freezing.freeze(self, recurse, keys, strict, frozen=False)

    @returns_copy()
    def tie(self, places: Mapping[str, str]) -> Self:
        """Tie places in a copy: one array stands at two places or more, and is one leaf.

        The tree, the parameters and files have it at its source only: one gradient (the sum over all places), one optimizer
        state, one array saved. The tied place reads as the same array, after every edit, cast and update, and in a jitted
        function. An edit of one place is an edit of both, and a tied place is frozen when its source is.

        Args:
            places: A dict from each place to be tied to its source, both as dotted paths from this module.

        Raises:
            TypeError: If ``places`` is not a mapping of paths.
            LookupError: If a path does not lead to an array; the message suggests the nearest paths.
            ValueError: If the two arrays have different shapes, or a place is tied already, or is both tied and a source.

        >>> import frostleaf as fl, mlx.core as mx
        >>> model = fl.nn.Sequential(fl.nn.Embedding(50, 8), fl.nn.Linear(8, 50, bias=False))
        >>> model = model.tie({"layers.1.weight": "layers.0.weight"})
        >>> model
        Sequential(layers=(Embedding(weight=f32[50,8]), Linear(weight=→layers.0.weight, bias=None)))
        >>> half = model.astype(mx.float16)
        >>> fl.tree.paths(half), half.layers[1].weight is half.layers[0].weight
        (['layers.0.weight'], True)
        """
        return tying.tie(self, places)

    @returns_copy()
    def untie(self, *places: str) -> Self:
        """Untie places of this module, by default all, in a copy: each has a leaf of its own again, at first the same array.

        Args:
            *places: Paths or globs of tied places, or of what holds some.

        Raises:
            LookupError: If one leads to no place that is tied in this module.

        >>> import frostleaf as fl
        >>> model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)).tie({"layers.1.bias": "layers.0.bias"})
        >>> len(fl.tree.leaves(model)), len(fl.tree.leaves(model.untie()))
        (3, 4)
        """
        return tying.untie(self, places)

    @returns_copy()
    def train(self, mode: bool = True) -> Self:
        """Switch to training mode in a copy, or with ``mode=False`` to evaluation mode.

        In training mode dropout drops, and batch norm uses the batch's statistics.

        >>> import frostleaf as fl
        >>> fl.nn.Dropout().train(False)
        Dropout[eval](p=0.5)
        """
        return modes.train(self, mode)

    @returns_copy()
    def eval(self) -> Self:
        """Switch to evaluation mode in a copy. See :meth:`train`.

        >>> import frostleaf as fl
        >>> fl.nn.Dropout().eval()
        Dropout[eval](p=0.5)
        """
        return modes.train(self, False)

    @returns_copy()
    def update(self, parameters: Any, strict: bool = True) -> Self:
        """Replace arrays in a copy by those in nested dicts and lists, named as in :meth:`parameters`.

        Args:
            parameters: Some or all of the new arrays. A module stands for its parameters.
            strict: Whether a name that the module doesn't have, or a value that is no array, is an error. Default: ``True``.

        Raises:
            ValueError: If ``strict`` and something does not fit; the message says where.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.Linear(1, 2).update({"bias": mx.ones(2)}).bias
        array([1, 1], dtype=float32)
        """
        return updating.update(self, parameters, strict)

    @returns_copy()
    def update_modules(self, modules: Any, strict: bool = True) -> Self:
        """Replace submodules in a copy by those in nested dicts and lists, named as in :meth:`children`.

        Args:
            modules: Some or all of the new modules.
            strict: Whether a name that the module doesn't have, or a value that is no module, is an error. Default: ``True``.

        Raises:
            ValueError: If ``strict`` and something does not fit; the message says where.

        >>> import frostleaf as fl
        >>> fl.nn.Sequential(fl.nn.Linear(2, 2)).update_modules({"layers": [fl.nn.Identity()]})
        Sequential(layers=(Identity(),))
        """
        return updating.update_modules(self, modules, strict)

    @returns_copy()
    def map_modules(self, fn: Callable[[str, Any], Any]) -> Self:
        """Replace modules in a copy by what a function returns for them.

        Args:
            fn: Called with the dotted path and the module, for every module below and then this one (with an empty path). Inner
                modules come first, so a module comes with its children replaced. Returns another module, or ``None`` for none.

        Warns:
            UserWarning: If nothing is replaced, since the function asks whether layers of a wrapped model are instances of a
                class of ``mlx.nn``.

        >>> import frostleaf as fl
        >>> model = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Dropout())
        >>> model.map_modules(lambda path, module: fl.nn.Identity() if isinstance(module, fl.nn.Dropout) else None)
        Sequential(layers=(Linear(weight=f32[2,2], bias=f32[2]), Identity()))
        """
        return updating.map_modules(self, fn)

    # Files

    @returns_copy()
    def load_weights(self, file_or_weights: Any, strict: bool = True, *, rename: io.weights.Rename | None = None) -> Self:
        """Load the parameters of a copy from a file, a directory, or a list.

        The arrays have the dtypes of the file. A safetensors file is read as its arrays are first used (``fl.eval`` reads all),
        in the thread that loaded it, so that no second copy of the model is in memory. Until then nobody may write into it, as
        ``cp`` does; to save to the same path is safe, since that puts another file in its place. The model need not be built
        either: a :class:`frostleaf.ShapeDtypeStruct`, which :func:`frostleaf.eval_shape` returns for an array, is filled from
        the file. Headers are checked before anything is read. Numbers have a checksum in ``.npz`` only: a flipped bit in
        another file of weights goes unnoticed. :func:`frostleaf.load` notices it in a file that :func:`frostleaf.save` wrote.

        Args:
            file_or_weights: The path of a ``.npz``, ``.safetensors`` or ``.gguf`` file, or a list of them, under any name that
                isn't another format's; of a directory in Hugging Face's layout, or its ``model.safetensors.index.json``; or
                arrays by dotted name, as pairs or in a dict. In a GGUF file MLX turns bfloat16, and ways of quantizing that it
                doesn't know, into float16.
            strict: Whether names, types and shapes must be exactly those of the model's parameters. Otherwise other names are
                ignored, and shapes, as by MLX. ``mx.load(file).keys() ^ {*fl.tree.paths(model)}`` are the names of one alone.
                What has the name of a tied place is for its source, unless that has something else. Default: ``True``.
            rename: A function from a name in the file to the model's name, or a mapping, which may leave out names that stay.
                ``None`` for a name leaves its array out. Default: the names are the same.

        Raises:
            ValueError: If ``strict`` and a name is extra or missing, or a value is no array or of another shape; if two names
                become one; if a file is of no known format. It is a :class:`frostleaf.CheckpointError` if a file is broken.
            FileNotFoundError: If a file does not exist.
            TypeError: If ``file_or_weights`` or ``rename`` is something else.

        Warns:
            UnmatchedWeightsWarning: If something is read for another kind of numbers; if not ``strict`` and nothing is read, or
                for another shape, or a mapping ``rename`` names what isn't there.

        >>> import frostleaf as fl, mlx.core as mx
        >>> given = {"fc.W": mx.ones((2, 1)), "fc.b": mx.ones(2)}
        >>> fl.eval_shape(fl.nn.Linear, 1, 2).load_weights(given, rename={"fc.W": "weight", "fc.b": "bias"})
        Linear(weight=f32[2,1], bias=f32[2])
        """
        return io.weights.load_weights(self, file_or_weights, strict, rename)

    def save_weights(self, file: str | os.PathLike[str], *, max_shard_bytes: int | None = None) -> None:
        """Save the parameters under MLX's names to a file, or to a directory of files.

        A crash at any instant leaves the old file or directory, or the new one, whole. A tied array is there once; under both
        names where the module that has the tie came from :func:`frostleaf.from_mlx`, since MLX asks for both.

        A directory gets Hugging Face's layout: numbered files of weights, and ``model.safetensors.index.json``, which says what
        is where. When it is saved again, the new index replaces the old one, and then the old files are removed:
        ``model.safetensors``, numbered ones, and those in the old index.

        Args:
            file: A path that ends in ``.npz``, ``.safetensors`` or ``.gguf``; or a directory: an existing one, a name that ends
                in a slash, or any name if ``max_shard_bytes`` is given.
            max_shard_bytes: The most bytes of arrays in one file of a directory; a larger array gets its own file. Default:
                5,000,000,000, five gigabytes.

        Raises:
            ValueError: If the ending is another, the format can't hold a dtype or a name, two names are the same, or a value
                is a :class:`frostleaf.ShapeDtypeStruct`; if ``max_shard_bytes`` is not positive, or given for a single file.
            TypeError: If ``max_shard_bytes`` is not an int.
            OSError: If the directory around ``file`` does not exist, or is a file.

        >>> import frostleaf as fl, os, tempfile
        >>> layer = fl.nn.Linear(2, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     layer.save_weights(f"{folder}/layer.safetensors")
        ...     fl.tree.equal(layer, fl.nn.Linear(2, 2).load_weights(f"{folder}/layer.safetensors"))
        ...     layer.save_weights(f"{folder}/model", max_shard_bytes=16)
        ...     sorted(os.listdir(f"{folder}/model"))
        True
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors', 'model.safetensors.index.json']
        """
        io.weights.save_weights(self, file, max_shard_bytes)
