"""The processes that work together, as a value."""

from __future__ import annotations

from typing import Any

import attrs
import mlx.core as mx

from ..core.words import describe

# What tells a group from the others of the job, on each of its processes: () is the group of all.
Name = tuple[Any, ...]

_UNPICKLABLE = (
    "this group was split off by mx.distributed, and another process can't tell which it is. Split it off with "
    "fl.distributed.init().split(color)"
)
_UNKNOWN = "this process has split off no such group: every process makes the same splits, before it unpickles a group"


@attrs.frozen(repr=False)
class Group:
    """Some of the processes of a job, which exchange arrays. :func:`frostleaf.distributed.init` returns that of all.

    It has the methods of MLX's own groups, and holds the one that MLX's functions take: ``group.mlx``. As a value it
    equals the same group made again, can be hashed and pickled, and unpickles as the same group in another process of the job.
    So it may be a static field, as it is of sharded layers.

    Attributes:
        mlx: MLX's own group.

    >>> import frostleaf as fl, pickle
    >>> group = fl.distributed.init()
    >>> group.rank(), group.size(), pickle.loads(pickle.dumps(group)) is group
    (0, 1, True)
    """

    _name: Name
    mlx: mx.distributed.Group = attrs.field(eq=False)

    def rank(self) -> int:
        """Return which of the group this process is, counted from 0."""
        return self.mlx.rank()

    def size(self) -> int:
        """Return how many processes the group has."""
        return self.mlx.size()

    def split(self, color: int, key: int = -1) -> Group:
        """Return the group of those processes of this one that give the same color. Every process of this one calls it.

        Args:
            color: A number.
            key: What the ranks in the new group are ordered by. Default: the rank in this group.

        Raises:
            RuntimeError: If the backend can't, as the ring.
        """
        made = self.mlx.split(color, key)
        count = _splits[self._name] = _splits.get(self._name, 0) + 1
        return _known.setdefault((*self._name, (count, color)), _in_use(Group((*self._name, (count, color)), made)))

    def __reduce__(self) -> Any:
        if self._name and self._name[0] == "mlx":
            raise TypeError(_UNPICKLABLE)
        return _named, (self._name,)

    def __copy__(self) -> Group:
        return self

    def __deepcopy__(self, memo: Any) -> Group:
        return self

    def __repr__(self) -> str:
        return f"Group(rank={self.rank()}, size={self.size()})"


_known: dict[Name, Group] = {}
_splits: dict[Name, int] = {}
# The groups of several processes that this process has used. While there is none, nothing is put in order.
in_use: list[Group] = []


def world(strict: bool = False, backend: str = "any") -> Group:
    """Return the group of all processes of the job, which begins with the first call."""
    if () not in _known:
        _known.setdefault((), _in_use(Group((), mx.distributed.init(strict, backend))))
    elif strict or backend != "any":
        mx.distributed.init(strict, backend)  # which raises if there is no such backend
    return _known[()]


def as_group(group: Group | mx.distributed.Group | None) -> Group:
    """Return a group as a value: one of ours as it is, that of all processes for ``None``, and one of MLX's.

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(group, Group):
        return group
    if group is None:
        return world()
    if not isinstance(group, mx.distributed.Group):
        given = describe(group)
        raise TypeError(f"a group is one from fl.distributed.init() or mx.distributed.init(), and was given as {given}")
    everyone = world()
    if (group.rank(), group.size()) == (everyone.rank(), everyone.size()):
        return everyone
    name = ("mlx", group.rank(), group.size())
    return _in_use(Group(name, group))


def _in_use(group: Group) -> Group:
    if group.size() > 1 and group not in in_use:
        in_use.append(group)
    return group


def _named(name: Name) -> Group:
    if not name:
        return world()
    if name not in _known:
        raise ValueError(_UNKNOWN)
    return _known[name]
