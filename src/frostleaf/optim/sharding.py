"""An optimizer of whose state each rank keeps a part."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import compress
from typing import Any

import mlx.core as mx

from ..core.arguments import require_bool
from ..core.dropped import returns_copy
from ..core.fields import buffer, static
from ..core.leaves import kinds_below
from ..core.sharing import with_leaves
from ..core.structure import Structure, flat_of
from ..core.words import Path, describe
from ..nn.shards import Groups, told
from ..transforms.agreement import Said, agreed, said_of_shards
from ..transforms.context import setting
from ..transforms.group import Group, as_group
from .agreeing import Exchanging
from .contents import are_arrays, renewed, static_in
from .flattening import Flattened
from .optimizer import NOT_A_STATE, OTHER_STATE, Optimizer, State, require_optimizer
from .order import IN_A_CHAIN, is_average
from .parameters import Parameters, groups_in, with_alike
from .parts import Division, part_of, part_shape, parts_of_averages, wholes_of
from .rule import ELEMENTWISE, Rule
from .wrapper import StatefulWrapper

AVERAGED_WHOLE = (
    "each rank has a part of the averages in the state of fl.optim.shard: with that optimizer as opt, and on all ranks, write "
    "opt.optimizer.averaged(model, opt.gather(state))"
)


class ShardedState(State):
    """What a sharded optimizer remembers: this rank's part of the state of the optimizer.

    Attributes:
        inner: The state of the optimizer, with vectors of this rank's part of each array.
        division: Which part it is, and of what.

    >>> import frostleaf as fl
    >>> state = fl.optim.shard(fl.optim.Adam(0.1)).init(fl.nn.Linear(2, 3))  # on one rank here
    >>> state.inner.slots["weight"]["m"].shape
    (3, 2)
    """

    inner: Any = buffer()
    division: Division = static()


A_WHOLE_STATE = ". To divide the state of an optimizer that is not sharded, write state = opt.scatter(state)"
OTHER_RANK = (
    "the state given to {optimizer}.{method} is that of rank {then} of {ranks_then}, and this is rank {now} of {ranks_now}. "
    "Where it was made, write whole = opt.gather(state) on every rank, and keep that. Here write state = opt.scatter(whole)"
)
OTHER_ARRAYS = "it has other arrays than those that were divided"
UNPACKED = (
    "fl.optim.shard(fl.optim.flatten(opt)) trains packed models, whose vectors are divided: write model = "
    "fl.optim.pack(model), or leave out fl.optim.flatten"
)
OTHER_PARTS = (
    "{optimizer} can't be sharded, since it does not update every number by itself: of a part of an array it remembers "
    "{given}, where it remembers {whole} of the whole array"
)


class Sharded(Exchanging, StatefulWrapper):
    """An optimizer of whose state each rank keeps a part, as made by :func:`shard`.

    >>> import frostleaf as fl
    >>> fl.optim.shard(fl.optim.SGD(0.1)).group  # on one rank here
    Group(rank=0, size=1)
    """

    group: Group = static()
    average: bool | None = static()

    __state__ = ShardedState

    def __init__(self, optimizer: Optimizer, group: Group, average: bool | None) -> None:
        self.optimizer, self.group, self.average = optimizer, group, average

    @returns_copy("whole = opt.{name}(state)")
    def gather(self, state: ShardedState) -> Any:
        """Return the state of the optimizer as it would be without sharding, on all ranks, each of which must call it.

        It is a state of ``opt.optimizer``, and so what to keep in a checkpoint: :meth:`scatter` divides it among any number of
        ranks. What is asked of that optimizer is asked with it: ``opt.optimizer.averaged(model, opt.gather(state))``.

        Args:
            state: A state of this optimizer.

        Raises:
            TypeError: If ``state`` is not the state of such an optimizer.
            ValueError: If it is that of another rank, or for another number of ranks. On every rank, if it fails on one, or
                states are unlike.

        >>> import frostleaf as fl
        >>> opt = fl.optim.shard(fl.optim.Adam(0.1))
        >>> type(opt.gather(opt.init(fl.nn.Linear(2, 3)))).__name__
        'OptimizerState'
        """

        def prepare() -> tuple[None, Said]:
            self._require_state(state, "gather")
            self._require_divided(state, "gather")
            flat, wholes = flat_of(state.inner), static_in(state, "division").shapes
            parts = zip(flat.structure.leaf_names(), flat.leaves, wholes, strict=True)
            return None, {
                name: describe(part) if whole is None else f"{describe(part)} of {whole}" for name, part, whole in parts
            }

        agreed("opt.gather", self.group, prepare, own=True)
        return self._whole(state, "gather")

    @returns_copy("state = opt.{name}(whole)")
    def scatter(self, whole: Any, model: Any = None) -> ShardedState:
        """Return this rank's part of a state of the optimizer that is not sharded, on all ranks, each of which must call it.

        Args:
            whole: A state of ``opt.optimizer``, the same on all ranks, as :meth:`gather` returns it.
            model: The model that it is for, with which it is then compared. It is needed if arrays of the model are shards over
                the same ranks, whose state stays as it is. Default: none is.

        Raises:
            TypeError: If ``whole`` is not the state of such an optimizer.
            ValueError: If it does not belong to the model that was given; the message names paths. On every rank, if it fails
                on one, or states are unlike.

        >>> import frostleaf as fl
        >>> opt, model = fl.optim.shard(fl.optim.Adam(0.1)), fl.nn.Linear(2, 3)
        >>> state = opt.init(model)
        >>> fl.tree.equal(opt.scatter(opt.gather(state)), state)
        True
        """

        def prepare() -> tuple[ShardedState, Said]:
            return self._scattered(whole, model), said_of_shards(whole)

        return agreed("opt.scatter", self.group, prepare, own=True)

    def _scattered(self, whole: Any, model: Any) -> ShardedState:
        if isinstance(whole, ShardedState):
            raise TypeError(f"scatter takes a whole state, from opt.gather(state), and was given {describe(whole)}")
        self.optimizer._require_state(whole, "scatter")
        if model is None:
            return self._part(whole)
        parameters = self._parameters(model, "scatter")
        self.optimizer._require_match(parameters, whole, "scatter")
        return self._part(whole, self.optimizer._init(self._parts(parameters)))

    def _init(self, parameters: Parameters) -> ShardedState:
        inner, whole = self.optimizer._init(self._parts(parameters)), self.optimizer._init(parameters)
        expected = self._part(whole, inner)
        leaves = flat_of(inner).leaves
        for part, other, given in zip(leaves, flat_of(expected.inner).leaves, flat_of(whole).leaves, strict=True):
            if part.shape != other.shape:
                shown = {"optimizer": describe(self.optimizer), "given": describe(part), "whole": describe(given)}
                raise ValueError(OTHER_PARTS.format(**shown))
        # A part of an array of the model would keep the whole.
        own = leaves if self.group.size() == 1 else [*map(mx.contiguous, leaves)]
        return ShardedState(with_leaves(inner, own), expected.division)

    def _update(
        self, parameters: Parameters, gradients: Mapping[str, mx.array], state: ShardedState
    ) -> tuple[dict[str, mx.array], ShardedState]:
        divided = self._divided(parameters)
        parts = self._parts(parameters)
        of_gradients = self._averages(gradients, divided, parameters) if self.average else self._parts_of(gradients, divided)
        if gradients is parameters.alike:
            parts = with_alike(parts, of_gradients)
        with setting(told, self._groups(parameters, divided)):
            new, inner = self.optimizer._update(parts, of_gradients, state.inner)
        names = [name for name in new if name in divided]
        wholes = wholes_of([new[name] for name in names], [parameters.arrays[name].shape for name in names], self.group)
        return {**new, **dict(zip(names, wholes, strict=True))}, renewed(state, inner=inner)

    def _differences(self, parameters: Parameters, state: ShardedState) -> Iterator[str]:
        known, flat = flat_of(self).structure.remember(_Fitting), flat_of(state.inner)
        key = None
        if are_arrays(flat.leaves):
            key = flat.signed(), static_in(state, "division"), parameters.names, parameters.kinds, self._kept(parameters)
            if known.key == key:
                return
        found = [*self.optimizer._differences(self._parts(parameters), state.inner)]
        if not _is_divided(state):
            found = found or [OTHER_ARRAYS]
        else:  # parts of one shape may be of arrays of several
            found = [*self.optimizer._differences(parameters, self._shapes_of_whole(state))] or found
        if not found:
            known.key = key
        yield from found

    def _averaged(self, parameters: Parameters, state: ShardedState) -> Mapping[str, mx.array]:
        raise ValueError(AVERAGED_WHOLE)

    def _adapt(self, state: ShardedState, parameters: Parameters) -> ShardedState:
        whole = self.optimizer._adapt(self._whole(state, "adapt"), parameters)
        return self._part(whole, self.optimizer._init(self._parts(parameters)))

    def _require_state(self, state: Any, method: str) -> None:
        if type(state) is not ShardedState:
            message = NOT_A_STATE.format(optimizer=type(self).__name__, method=method, given=describe(state))
            raise TypeError(message + A_WHOLE_STATE * isinstance(state, State))
        super()._require_state(state, method)
        division: Division = static_in(state, "division")
        rank, ranks = self.group.rank(), self.group.size()
        if (division.rank, division.ranks) != (rank, ranks):
            then = {"then": division.rank, "ranks_then": division.ranks, "now": rank, "ranks_now": ranks}
            raise ValueError(OTHER_RANK.format(optimizer=type(self).__name__, method=method, **then))

    def _not_elementwise(self) -> Iterator[Any]:
        yield self

    def _averaging(self) -> str | None:
        return "shard({}, average=True)" if self.average else super()._averaging()

    def _require_averaged(self) -> None:
        if self.average is None and self.group.size() > 1:
            raise ValueError(NOT_TOLD)

    def _parts(self, parameters: Parameters) -> Parameters:
        """Return the parameters with this rank's part of each array."""
        if self.group.size() == 1:
            return parameters
        if not parameters.is_packed and flat_of(self).structure.remember(_has_flattened):
            raise ValueError(UNPACKED)
        return Parameters(self._parts_of(parameters.arrays, self._divided(parameters)), parameters.model)

    def _parts_of(self, arrays: Mapping[str, mx.array], divided: Collection[str]) -> dict[str, mx.array]:
        return {name: part_of(array, self.group) if name in divided else array for name, array in arrays.items()}

    def _averages(
        self, gradients: Mapping[str, mx.array], divided: Collection[str], parameters: Parameters
    ) -> dict[str, mx.array]:
        """Return this rank's part of the average of each gradient over all ranks. Shards have been averaged already."""
        if self.group.size() == 1:
            return dict(gradients)
        kept = self._kept(parameters)
        names = [name for name in gradients if name not in kept]
        parts = parts_of_averages([gradients[name] for name in names], [name in divided for name in names], self.group)
        return {**gradients, **dict(zip(names, parts, strict=True))}

    def _divided(self, parameters: Parameters) -> frozenset[str]:
        """Return the names of the arrays that are divided: all but tiny ones, and those that are shards already."""
        ranks = self.group.size()
        is_divided = [part_shape(shape, ranks) != shape for shape, _ in parameters.kinds]
        return frozenset(compress(parameters.arrays, is_divided)).difference(self._kept(parameters))

    def _kept(self, parameters: Parameters) -> tuple[str, ...]:
        """Return the names of the arrays that are shards over these ranks, and stay as they are."""
        return tuple([name for name, groups in groups_in(parameters).items() if self.group in groups])

    def _groups(self, parameters: Parameters, divided: Collection[str]) -> dict[str, Groups]:
        """Return by name the groups among which the arrays are divided that the optimizer is given."""
        around = groups_in(parameters)
        return {**around, **{name: (*around.get(name, ()), self.group) for name in divided}}

    def _part(self, whole: Any, like: Any = None) -> ShardedState:
        """Return this rank's part of a state. Of one for parts of the arrays, if there is such, it has the shapes."""
        ranks = self.group.size()
        expected = {} if like is None else {path: leaf.shape for path, leaf in _by_path(like)}
        leaves, shapes = [], []
        for path, leaf in _by_path(whole):
            divides = leaf.shape not in (part_shape(leaf.shape, ranks), expected.get(path))
            shapes.append(leaf.shape if divides else None)
            # A slice alone would keep the memory of the whole.
            leaves.append(mx.contiguous(part_of(leaf, self.group)) if divides else leaf)
        return ShardedState(with_leaves(whole, leaves), Division(self.group.rank(), ranks, tuple(shapes)))

    def _whole(self, state: ShardedState, method: str) -> Any:
        self._require_divided(state, method)
        leaves, shapes = [*flat_of(state.inner).leaves], static_in(state, "division").shapes
        places = [place for place, shape in enumerate(shapes) if shape is not None]
        wholes = wholes_of([leaves[place] for place in places], [shapes[place] for place in places], self.group)
        for place, whole in zip(places, wholes, strict=True):
            leaves[place] = whole
        return with_leaves(state.inner, leaves)

    def _require_divided(self, state: ShardedState, method: str) -> None:
        if not _is_divided(state):
            raise ValueError(OTHER_STATE.format(optimizer=type(self).__name__, method=method, differences=OTHER_ARRAYS))

    def _shapes_of_whole(self, state: ShardedState) -> Any:
        """Return a state with the shapes and dtypes of the whole, whose numbers nothing reads."""
        leaves = zip(flat_of(state.inner).leaves, static_in(state, "division").shapes, strict=True)
        return with_leaves(state.inner, [leaf if shape is None else mx.zeros(shape, leaf.dtype) for leaf, shape in leaves])


def _is_divided(state: ShardedState) -> bool:
    """Return whether a state has the arrays that are noted, of shapes that they can have."""
    leaves, division = flat_of(state.inner).leaves, static_in(state, "division")
    return (
        are_arrays(leaves)
        and len(leaves) == len(division.shapes)
        and all(
            shape is None or leaf.shape == part_shape(shape, division.ranks)
            for leaf, shape in zip(leaves, division.shapes, strict=True)
        )
    )


def _by_path(tree: Any) -> Iterator[tuple[Path, Any]]:
    flat = flat_of(tree)
    return zip(flat.structure.leaf_paths(), flat.leaves, strict=True)


class _Fitting:
    """The last state that was found to fit a model, in shapes and dtypes.

    Args:
        structure: That of the optimizer, with which this is kept.
    """

    __slots__ = ("key",)

    def __init__(self, structure: Structure) -> None:
        self.key: Any = None


def _has_flattened(structure: Structure) -> bool:
    return Flattened in kinds_below(structure)


NOT_TOLD = (
    "fl.optim.shard(opt) divides gradients that are the same on all ranks, and trains with mixtures of others. If each rank "
    "has its own, write shard(opt, average=True), or chain(fl.distributed.average_gradients, shard(opt)). If they have been "
    "averaged before, say shard(opt, average=False)"
)
NOT_ELEMENTWISE = (
    "{given} can't be sharded. Each rank would give its part of every array to {first}, which is not known to update every "
    "number by itself, as {known} do. {advice}. If yours does, say fl.optim.shard(opt, elementwise=True)"
)
A_FUNCTION = "Write {instead} for it to see whole gradients"
A_RULE = "Train with it what needs it, and shard the rest: {instead}"
BEFORE = "chain({first}, shard(opt))"
BESIDE = "fl.optim.multi({{where: {first}, '**': fl.optim.shard(other)}})"
TWICE = "{given} is sharded already: fl.optim.shard takes an optimizer in which nothing is"


def shard(opt: Optimizer, group: Any = None, *, average: bool | None = None, elementwise: bool | None = None) -> Sharded:
    r"""Return an optimizer of whose state each of :math:`N` ranks keeps :math:`1 / N`, with the same results.

    Each rank updates its part of every parameter, of which it keeps the state, and then all ranks exchange the parts. So the
    state takes the memory that it takes on one rank divided by their number, and a step peaks lower as well; the exchange has
    the size of the model. Each array is divided by itself, as a vector whatever its shape; one with fewer numbers than there
    are ranks stays whole, as do shards over the same ranks (:func:`frostleaf.distributed.fully_shard`), of which each rank
    keeps the state anyway. Rajbhandari et al., `ZeRO <https://arxiv.org/abs/1910.02054>`_ (stage 1).

    Gradients must be the same on all ranks. Either they are averaged first:
    ``chain(average_gradients, clip_by_global_norm(1.0), shard(AdamW(1e-3)))``. Or here, with ``average=True``, where each rank
    keeps its part of each average and drops the rest before the next is computed: a step then peaks lower by nearly the size of
    the gradients, and what needs averages stands inside: ``shard(chain(clip_by_global_norm(1.0), AdamW(1e-3)), average=True)``.
    Evaluate steps by :func:`frostleaf.distributed.eval`: on the CPU, MLX otherwise makes room for all gradients at once.

    The state of whatever is inside is divided: ``shard(ema(opt, decay))`` and ``shard(accumulate(opt, n))`` divide averages and
    sums of gradients too, and compute the numbers that they do with ``shard`` inside. Clipping by the norm inside adds up the
    squares of the ranks' parts, in another order than outside.

    ``opt.gather(state)`` is the state without sharding, which belongs in a checkpoint, and ``opt.scatter(whole)`` the way back,
    on any number of ranks; in a chain keep the ``shard(...)`` inside, which has them, and in other wrappers give it
    ``state.inner``. With one process all of this exchanges and divides nothing.

    Args:
        opt: An optimizer whose rules update every number by itself: SGD, RMSprop, Adagrad, AdaDelta, Adam, AdamW, Adamax, Lion,
            in any wrappers. With :func:`flatten` for a packed model.
        group: The ranks. Default: those of the whole job.
        average: Whether the gradients are each rank's own, and to be averaged over the ranks. ``False`` says that they are the
            same on all of them. Default: ``None``, for an optimizer with ``average_gradients`` in front of it; on several ranks
            one without refuses to begin.
        elementwise: Whether all rules and functions inside update every number by itself, for those of your own. Default: known
            for those of MLX and here.

    Raises:
        TypeError: If ``opt`` is something else, or ``group`` no group.
        ValueError: If something inside is not elementwise, or sharded already.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt = fl.optim.chain(fl.distributed.average_gradients, fl.optim.shard(fl.optim.SGD(0.5, momentum=0.9)))
    >>> w = mx.array([1.0, 2.0])
    >>> opt.update(w, mx.array([2.0, 2.0]), opt.init(w))[0]
    array([0, 1], dtype=float32)
    """
    require_optimizer(opt, "shard")
    for first in opt._not_elementwise():
        if isinstance(first, Sharded):
            raise ValueError(TWICE.format(given=describe(opt)))
        if elementwise is not True:
            known = ", ".join(sorted(rule.__name__ for rule in ELEMENTWISE))
            shown = describe(first.rule if isinstance(first, Rule) else first)
            advice, instead = (A_RULE, BESIDE) if isinstance(first, Optimizer) else (A_FUNCTION, BEFORE)
            instead = instead.format(first=shown)
            advice = advice.format(instead=IN_A_CHAIN.format(instead) if average and not is_average(first) else instead)
            raise ValueError(NOT_ELEMENTWISE.format(given=describe(opt), first=shown, known=known, advice=advice))
    return Sharded(opt, as_group(group), None if average is None else require_bool("average", average))
