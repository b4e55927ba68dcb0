"""``typing.get_type_hints`` works on every class and function of the public names, and on classes of users."""

import inspect
import typing

import mlx.core as mx
import pytest

import frostleaf as fl

PUBLIC = {
    f"{space.__name__}.{name}": getattr(space, name)
    for space in (fl, fl.nn, fl.optim, fl.plot, fl.tree)
    for name in space.__all__
}
OURS = {name: value for name, value in PUBLIC.items() if getattr(value, "__module__", "").startswith("frostleaf")}


class User(fl.Module):
    w: mx.array
    layers: "tuple[fl.nn.Linear, ...]" = ()

    def half(self) -> "User":
        return self.astype(mx.float16)


class Inheriting(User):
    more: fl.nn.Linear | None = None


def methods(cls):
    """Yield the functions of a class but for those that attrs keeps for itself."""
    for name, value in inspect.getmembers(cls, callable):
        if hasattr(value, "__annotations__") and not isinstance(value, type) and name != "__attrs_init__":
            yield value


@pytest.mark.parametrize("name", OURS)
def test_the_hints_of_a_public_name_and_of_its_methods_resolve(name):
    value = OURS[name]
    typing.get_type_hints(value)
    for method in methods(value) if isinstance(value, type) else ():
        typing.get_type_hints(method)


def test_those_of_a_user_resolve():
    hints = typing.get_type_hints(Inheriting)
    assert (hints["w"], hints["layers"], hints["more"]) == (mx.array, tuple[fl.nn.Linear, ...], fl.nn.Linear | None)
    assert typing.get_type_hints(Inheriting.half) == {"return": User}
    assert typing.get_type_hints(User.__init__)["w"] is mx.array
    for method in methods(Inheriting):
        typing.get_type_hints(method)
