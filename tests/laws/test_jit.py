"""Law 8: jit changes speed, nothing else.

Most functions here do one thing, and the same one: what takes time under jit is MLX's compiler, once for each new kernel.
"""

from __future__ import annotations

import functools
import gc
import queue
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import Snapshot, arrays, arrays_of, law, modules, parts, plus, scalars, trees

import frostleaf as fl
from frostleaf.core.instance import metadata_of

ONE, TWO = mx.ones(2), mx.full(2, 2.0)
reads_from_outside = pytest.mark.filterwarnings("ignore::frostleaf.CapturedArrayWarning")
NAN = float("nan")


class Point(NamedTuple):
    x: Any
    y: Any


class Layer(fl.Module):
    """One array, one buffer, one static value."""

    weight: mx.array
    seen: mx.array = fl.buffer(factory=lambda: mx.zeros(2))
    power: Any = fl.static(default=1)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.weight

    def shifted(self, by: mx.array) -> Layer:
        return self.replace(weight=self.weight + by)


class Pair(fl.Module):
    parts: Any


def layer(value: float = 1.0, power: Any = 1) -> Layer:
    return Layer(mx.full(2, value), power=power)


def alike(left: Any, right: Any) -> bool:
    """Return whether two trees are alike in every class, name, mode, static value and number, by Python's means alone."""
    here, there = parts(left), parts(right)
    if len(here) != len(there):
        return False
    for (path, one), (other_path, other) in zip(here, there, strict=True):
        if path != other_path or type(one) is not type(other):
            return False
        if isinstance(one, mx.array):
            if one.dtype != other.dtype or one.shape != other.shape:
                return False
            if not mx.array_equal(one, other, equal_nan=mx.issubdtype(one.dtype, mx.inexact)):
                return False
        elif isinstance(one, fl.Module):
            if (one.training, metadata_of(one).frozen) != (other.training, metadata_of(other).frozen):
                return False
        elif not isinstance(one, tuple | list | deque | dict | MappingProxyType) and repr(one) != repr(other):
            return False
    return True


def key_of(tree: Any) -> Any:
    """Return what a trace depends on: everything about a tree except the numbers in its arrays."""
    key = []
    for path, part in parts(tree):
        if isinstance(part, mx.array):
            key.append((path, part.dtype, part.shape))
        elif isinstance(part, fl.Module):
            key.append((path, type(part), part.training, metadata_of(part).frozen))
        elif isinstance(part, tuple | list | deque | dict | MappingProxyType):
            key.append((path, type(part), len(part)))
        else:
            key.append((path, type(part), repr(part)))
    return key


def double(tree: Any) -> Any:
    return fl.tree.map(lambda leaf: leaf + leaf, tree)


def draw(x: mx.array) -> mx.array:
    """Return two random numbers, by operations that MLX does not fuse: each new fused kernel takes its compiler a second."""
    return mx.random.permutation(4096)[:2] + x


ZERO = mx.zeros(2, mx.uint32)


def draws(function: Callable[..., Any], count: int = 5, *args: Any, seed: int = 7) -> list[Any]:
    """Return what the function draws in several calls, from one seed, and what anybody draws next."""
    mx.random.seed(seed)
    drawn = [function(*(args or (ZERO,))) for _ in range(count)]
    return [fl.tree.map(mx.array.tolist, each) for each in (*drawn, mx.random.permutation(4096)[:2])]


# The same result


@law
@given(trees())
def test_a_jitted_function_returns_what_the_function_returns(tree: Any) -> None:
    snapshot = Snapshot(tree)
    jitted = fl.jit(double)
    for _ in range(2):
        assert alike(jitted(tree), double(tree))
    assert jitted.trace_count == 1
    snapshot.assert_unchanged()


@law
@given(trees(), trees())
def test_a_tree_may_stand_anywhere_among_the_arguments(first: Any, second: Any) -> None:
    function = lambda a, *rest, b, **more: {"rest": rest, "a": a, "b": (b, a), "more": more}  # noqa: E731
    jitted = fl.jit(function)
    for _ in range(2):
        assert alike(jitted(first, second, ONE, b=second, c=first), function(first, second, ONE, b=second, c=first))
    assert jitted.trace_count == 1


RESULTS: dict[str, Callable[[mx.array], Any]] = {
    "nothing": lambda x: None,
    "an array": lambda x: x + x,
    "the argument": lambda x: x,
    "a constant array": lambda x: TWO,
    "a list": lambda x: [x, [x + x]],
    "a tuple": lambda x: (x, (x + x,)),
    "an empty tuple": lambda x: (),
    "an empty list": lambda x: [],
    "a dict in its own order": lambda x: {"b": x, "a": x + x},
    "a dict whose keys can't be sorted": lambda x: {"b": x, 1: x + x, (2, None): x},
    "an OrderedDict": lambda x: OrderedDict(b=x, a=x + x),
    "a defaultdict": lambda x: defaultdict(list, b=x, a=x + x),
    "a mapping proxy": lambda x: MappingProxyType({"b": x, "a": x + x}),
    "a deque": lambda x: deque([x, 1], maxlen=3),
    "a namedtuple": lambda x: Point(x, [x + x]),
    "a string": lambda x: ("text", x),
    "None among arrays": lambda x: [None, x, {"none": None}],
    "a module": lambda x: Layer(x, power=2.5),
    "a module in evaluation mode, frozen": lambda x: Layer(x).eval().freeze(),
    "modules in a module": lambda x: Pair([Layer(x), {"b": Layer(x + x), "a": None}, 3]),
    "numbers": lambda x: (True, 1, 1.0, -0.0, NAN, 1 + 0j),
    "a function": lambda x: (len, x),
    "a dtype": lambda x: (x.dtype, x),
    "what depends on the shape": lambda x: (x.shape, x.ndim, {"size": x.size, "text": str(x.shape)}),
    "the same array twice": lambda x: (x + x,) * 2,
    "a structure that depends on the shape": lambda x: [x] * x.size,
}


@reads_from_outside
@pytest.mark.parametrize("function", RESULTS.values(), ids=RESULTS)
def test_each_kind_of_result_is_returned_as_it_is(function: Callable[[mx.array], Any]) -> None:
    jitted = fl.jit(function)
    for x in (ONE, TWO, mx.ones(3), ONE, mx.ones((1, 2)), mx.ones(2, mx.float16), mx.zeros(3)):
        assert alike(jitted(x), function(x))
    assert jitted.trace_count == 4


MUTABLE: dict[str, tuple[Callable[[mx.array], Any], Callable[[Any], Any]]] = {
    "a list": (lambda x: [x, [1]], lambda out: out[1].append(2)),
    "a dict": (lambda x: {"a": {"b": x}}, lambda out: out["a"].clear()),
    "a set": (lambda x: (x, {1}), lambda out: out[1].add(2)),
    "a bytearray": (lambda x: (x, bytearray(b"a")), lambda out: out[1].append(2)),
}


@pytest.mark.parametrize(("function", "spoil"), MUTABLE.values(), ids=MUTABLE)
def test_a_result_that_the_caller_changes_is_not_returned_again(
    function: Callable[[mx.array], Any], spoil: Callable[[Any], Any]
) -> None:
    jitted = fl.jit(function)
    spoil(jitted(ONE))
    assert alike(jitted(ONE), function(ONE))


def test_what_the_caller_can_not_change_is_returned_itself_beside_what_it_can() -> None:
    fixed = (object(), threading.Lock(), len)
    jitted = fl.jit(lambda x: (x, fixed, {1}))
    for out in jitted(ONE), jitted(ONE):
        assert all(value is given for value, given in zip(out[1], fixed, strict=True))
        assert out[2] == {1}


def test_an_argument_that_the_caller_changes_later_does_not_change_what_was_traced() -> None:
    chosen, items = {1}, [ONE]
    jitted = fl.jit(lambda items, chosen: (items, sorted(chosen)))
    jitted(items, chosen)
    items.append(TWO)
    chosen.add(2)
    assert alike(jitted([ONE], {1}), ([ONE], [1]))
    assert alike(jitted(items, chosen), ([ONE, TWO], [1, 2]))


def test_arrays_can_be_used_after_the_call_that_they_were_given_to() -> None:
    jitted = fl.jit(lambda model, x: (model.shifted(x), x, x + x))
    model, x = layer(), mx.ones(2)
    history = [model]
    for _ in range(4):
        model, same, twice = jitted(model, x)
        history.append(model)
        fl.eval(model)
        assert same.tolist() == [1.0, 1.0]
        assert twice.tolist() == [2.0, 2.0]
    assert [each.weight.tolist() for each in history] == [[n, n] for n in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert jitted.trace_count == 1


def test_an_array_may_be_passed_twice() -> None:
    jitted = fl.jit(lambda a, b: (a + b, b))
    for one, other in ((ONE, ONE), (ONE, TWO), (TWO, TWO)):
        assert alike(jitted(one, other), (one + other, other))
    assert jitted.trace_count == 1


def test_a_module_that_stands_at_two_places_may_be_passed() -> None:
    shared = layer()
    jitted = fl.jit(lambda model: model.parts[0](model.parts[1].weight))
    assert jitted(Pair([shared, shared])).tolist() == [2.0, 2.0]
    assert jitted(Pair([shared, layer(5.0)])).tolist() == [6.0, 6.0]
    assert jitted.trace_count == 1


def test_a_large_tree_goes_in_and_comes_out() -> None:
    tree = {f"layer{number}": [layer(number), (mx.array([number]), number)] for number in range(150)}
    jitted = fl.jit(double)
    for _ in range(2):
        assert alike(jitted(tree), double(tree))
    assert len(fl.tree.leaves(tree)) == 450
    assert jitted.trace_count == 1


@reads_from_outside
def test_arrays_read_from_outside_are_constants() -> None:
    jitted = fl.jit(lambda: TWO + TWO)
    assert [jitted().tolist(), jitted().tolist(), jitted.trace_count] == [[4.0, 4.0], [4.0, 4.0], 1]


CONSTANTS: dict[str, Callable[[mx.array], Any]] = {
    "the array itself": lambda x: x,
    "what is computed from it": lambda x: x + x,
    "a module that holds it": lambda x: Layer(x),
    "a view of it": lambda x: x[:1],
}


@reads_from_outside
@pytest.mark.parametrize("evaluated", [True, False])
@pytest.mark.parametrize("make", CONSTANTS.values(), ids=CONSTANTS)
def test_what_a_function_reads_from_outside_may_be_passed_to_it_as_well(make: Callable[..., Any], evaluated: bool) -> None:
    given = mx.array([1.0, 2.0])
    outside = make(given)
    if evaluated:
        fl.eval(given, outside)
    function = lambda x: [x + leaf for leaf in fl.tree.leaves(outside)]  # noqa: E731
    jitted = fl.jit(function)
    for x in (given, TWO, given):
        assert alike(jitted(x), function(x))
    assert jitted.trace_count == 1


def test_the_same_holds_when_mlx_does_not_compile() -> None:
    jitted = fl.jit(lambda model, x: {"b": model(x), "a": (x.shape, model)})
    mx.disable_compile()
    try:
        for x in (ONE, TWO):
            assert alike(jitted(layer(), x), {"b": layer()(x), "a": (x.shape, layer())})
        assert draws(fl.jit(draw)) == draws(draw)
    finally:
        mx.enable_compile()


# How often a function is traced


@law
@given(trees(max_leaves=3), trees(max_leaves=3))
def test_a_function_is_traced_once_for_each_structure_and_each_dtypes_and_shapes(first: Any, second: Any) -> None:
    jitted = fl.jit(lambda tree: tree)
    rebuilt = fl.tree.map(lambda leaf: leaf + leaf, first)
    for tree in (first, second, rebuilt, first, second):
        assert alike(jitted(tree), tree)
    assert jitted.trace_count == (1 if key_of(first) == key_of(second) else 2)


@law
@given(modules(st.one_of(arrays(), scalars)))
def test_an_edit_of_the_structure_is_one_more_trace_and_undoing_it_none(module: fl.Module) -> None:
    jitted = fl.jit(lambda tree: tree)
    edits = [module, module.freeze(), module.train(), module.eval(), module.astype(mx.float16), module]
    for edited in edits:
        assert alike(jitted(edited), edited)
    keys = []
    for edited in edits:
        if key_of(edited) not in keys:
            keys.append(key_of(edited))
    assert jitted.trace_count == len(keys)


ANOTHER = {
    "True and 1": (True, 1),
    "1 and 1.0": (1, 1.0),
    "False and 0": (False, 0),
    "1.0 and 1+0j": (1.0, 1 + 0j),
    "0.0 and -0.0": (0.0, -0.0),
    "0j and -0j": (0j, -0j),
    "complex numbers of two signs": (complex(0, 0.0), complex(0, -0.0)),
    "inf and nan": (float("inf"), NAN),
    "a list and a tuple": ([ONE], (ONE,)),
    "an empty list and an empty tuple": ([], ()),
    "a tuple and a namedtuple": ((ONE, ONE), Point(ONE, ONE)),
    "a list and a deque": ([ONE], deque([ONE])),
    "a dict and an OrderedDict": ({"a": ONE}, OrderedDict(a=ONE)),
    "a dict and a mapping proxy": ({"a": ONE}, MappingProxyType({"a": ONE})),
    "two orders of a dict": ({"a": ONE, "b": ONE}, {"b": ONE, "a": ONE}),
    "two orders of a dict of numbers": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "two orders in a module": (Pair({"a": ONE, "b": ONE}), Pair({"b": ONE, "a": ONE})),
    "keys 1 and True": ({1: ONE}, {True: ONE}),
    "keys 1 and '1'": ({1: ONE}, {"1": ONE}),
    "keys 0.0 and -0.0": ({0.0: ONE}, {-0.0: ONE}),
    "None and nothing": (None, ()),
    "None and False": (None, False),
    "an array and a number": (ONE, 1.0),
    "an array and None": (ONE, None),
    "a string and its bytes": ("a", b"a"),
    "frozensets": (frozenset([1]), frozenset([True])),
    "partials of 1 and True": (functools.partial(plus, 1), functools.partial(plus, True)),
    "partials by position and by name": (functools.partial(plus, 1), functools.partial(plus, left=1)),
    "nested numbers": ([(1, {"a": 2})], [(1, {"a": 2.0})]),
    "two functions": (len, repr),
    "two classes": (int, float),
    "dtypes as values": (mx.float32, mx.float16),
    "dtypes": (ONE, mx.ones(2, mx.float16)),
    "signed and unsigned": (mx.ones(2, mx.int32), mx.ones(2, mx.uint32)),
    "shapes": (ONE, mx.ones(3)),
    "ranks": (ONE, mx.ones((1, 2))),
    "a scalar and a vector": (mx.array(1.0), mx.array([1.0])),
    "a freeze": (layer(), layer().freeze()),
    "a freeze of one field": (layer().freeze(keys="weight"), layer().freeze(keys=["weight", "seen"])),
    "train and eval": (layer(), layer().eval()),
    "an inner train and eval": (Pair([layer()]), Pair([layer().eval()])),
    "a static field": (layer(power=1), layer(power=2)),
    "a static field of True and 1": (layer(power=1), layer(power=True)),
    "a static field of 0.0 and -0.0": (layer(power=0.0), layer(power=-0.0)),
    "a static field in another order": (layer(power={"a": 1, "b": 2}), layer(power={"b": 2, "a": 1})),
    "a field without its array": (Pair(ONE), Pair(None)),
    "more in a container": (Pair([ONE]), Pair([ONE, ONE])),
    "classes": (Pair(layer()), Layer(layer())),
}


@pytest.mark.parametrize(("one", "other"), ANOTHER.values(), ids=ANOTHER)
def test_another_structure_is_exactly_one_more_trace(one: Any, other: Any) -> None:
    jitted = fl.jit(lambda value, x: (value, x))
    for value, count in ((one, 1), (other, 2), (one, 2), (other, 2)):
        assert alike(jitted(value, ONE), (value, ONE))
        assert jitted.trace_count == count
    by_name = fl.jit(lambda x, *, value: (value, x))
    for value, count in ((other, 1), (one, 2), (one, 2), (other, 2)):
        assert alike(by_name(ONE, value=value), (value, ONE))
        assert by_name.trace_count == count


SAME: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"),
    "nan inside": lambda: [(float("nan"), {"a": float("nan")})],
    "nan in a field": lambda: layer(power=float("nan")),
    "large numbers": lambda: (10**40, 1.5e300, -(10**40) * 1j),
    "strings": lambda: "".join(["a", "b"]),
    "lists": lambda: [ONE + ONE, [1, None]],
    "dicts": lambda: {"b": ONE + ONE, "a": {}},
    "a set": lambda: {3, 1, 2},
    "a namedtuple": lambda: Point(ONE + ONE, None),
    "modules": lambda: Pair([layer(), {"b": layer(power=(1, "a")), "a": 1.0}]),
    "a frozen module": lambda: layer().freeze(),
    "a module frozen piece by piece": lambda: layer().freeze(keys="weight").freeze(keys="seen"),
    "a module thawed": lambda: layer().freeze().unfreeze(),
    "a module in evaluation mode": lambda: layer().eval(),
    "a module in training mode again": lambda: layer().eval().train(),
    "a module cast there and back": lambda: layer().astype(mx.float16).astype(mx.float32),
    "an edited module": lambda: layer().at("weight").set(TWO),
    "static containers": lambda: layer(power={"a": [1, {2}], "b": (3,)}),
    "a partial": lambda: functools.partial(plus, 1, right=2.0),
    "an optimizer": lambda: fl.optim.Adam(1e-3),
    "a state": lambda: fl.optim.Adam(1e-3).init(layer()),
    "a view": lambda: mx.ones((2, 3)).T,
    "a slice": lambda: mx.arange(4)[1:3],
    "a result": lambda: fl.jit(double)(layer()),
    "a gradient": lambda: fl.grad(lambda model: model(ONE).sum())(layer()),
}


@pytest.mark.parametrize("build", SAME.values(), ids=SAME)
def test_what_is_built_again_alike_is_not_traced_again(build: Callable[[], Any]) -> None:
    jitted = fl.jit(lambda value, x: (value, x))
    for _ in range(3):
        assert alike(jitted(build(), ONE), (build(), ONE))
    assert jitted.trace_count == 1


class Length(float):
    """A number that shows itself rounded."""

    def __repr__(self) -> str:
        return f"{float(self):.1f} m"


class Level(int):
    """A number that shows its name."""

    def __repr__(self) -> str:
        return "Level"


@pytest.mark.parametrize(("one", "other"), [(Length(1.01), Length(1.04)), (Level(1), Level(2))])
def test_numbers_that_look_alike_are_not_taken_for_each_other(one: Any, other: Any) -> None:
    def beside(x: mx.array, number: Any) -> mx.array:  # which MLX does not fuse
        return mx.concatenate([x, mx.array([number + 0], mx.float32)])

    jitted = fl.jit(beside)
    for number, count in ((one, 1), (other, 2), (one, 2)):
        assert alike(jitted(ONE, number), beside(ONE, number))
        assert jitted.trace_count == count
    in_a_field = fl.jit(lambda model: beside(model.weight, model.power))
    for number in (one, other):
        assert alike(in_a_field(layer(power=number)), beside(ONE, number))


def test_the_order_of_the_names_in_a_call_does_not_change_the_result() -> None:
    function = lambda **named: [*named.items()]  # noqa: E731
    jitted = fl.jit(function)
    for _ in range(2):
        assert alike(jitted(a=ONE, b=TWO), function(a=ONE, b=TWO))
        assert alike(jitted(b=TWO, a=ONE), function(b=TWO, a=ONE))


def test_each_jitted_function_has_its_own_traces() -> None:
    first, second = fl.jit(double), fl.jit(double)
    first(ONE)
    assert (first.trace_count, second.trace_count) == (1, 0)


def test_a_function_may_call_its_own_jitted_self() -> None:
    def total(x: mx.array, drawn: list[mx.array]) -> Any:
        drawn = [*drawn, draw(mx.zeros(2, mx.uint32))]
        return (x, drawn) if x.size == 1 else jitted(x[1:], drawn)

    def plain(x: mx.array, drawn: list[mx.array]) -> Any:
        drawn = [*drawn, draw(mx.zeros(2, mx.uint32))]
        return (x, drawn) if x.size == 1 else plain(x[1:], drawn)

    jitted = fl.jit(total)
    x = mx.arange(4)
    jitted(x, [])
    assert jitted.trace_count == 4
    last = fl.jit(lambda x: x if x.size == 1 else last(x[1:]))
    assert last(x).tolist() == [3]
    assert last.trace_count == 4
    assert draws(jitted, 3, x, []) == draws(plain, 3, x, [])
    assert draws(jitted, 3, x[2:], []) == draws(plain, 3, x[2:], [])


def test_with_shapeless_one_trace_serves_all_shapes() -> None:
    jitted = fl.jit(double, shapeless=True)
    for shape in (2, 3, 200, 0):
        assert jitted(layer().replace(weight=mx.ones(shape))).weight.tolist() == [2.0] * shape
    assert jitted.trace_count == 1
    jitted([ONE])
    jitted(mx.ones(2, mx.int32))
    assert jitted.trace_count == 3


# Random numbers


def nested(x: mx.array) -> mx.array:
    return mx.concatenate([draw(x), fl.jit(draw)(x), draw(x)])


def from_a_key(x: mx.array) -> list[mx.array]:
    before = draw(x)
    with fl.rng(mx.random.key(3)):
        inside = draw(x), fl.jit(draw)(x)
    return [before, *inside, draw(x)]


def with_next_key(x: mx.array) -> list[mx.array]:
    return [mx.random.permutation(4096, key=fl.next_key())[:2] + x, fl.next_key(), draw(x)]


def under_vmap(x: mx.array) -> mx.array:
    return mx.vmap(lambda row: draw(row))(mx.zeros((3, 2), mx.uint32) + x)


def with_gradient(x: mx.array) -> Any:
    return fl.value_and_grad(lambda w: (w * draw(x)).sum())(mx.ones(2)), draw(x)


def seeding(x: mx.array) -> list[mx.array]:
    first = draw(x)
    mx.random.seed(11)
    return [first, draw(x)]


def in_a_module(x: mx.array) -> Any:
    return fl.nn.Linear(2, 2).weight, fl.nn.Dropout(0.5)(mx.ones(8)), draw(x)


RANDOM: dict[str, Callable[[mx.array], Any]] = {
    "one draw": draw,
    "no draw": lambda x: x,
    "two draws": lambda x: [draw(x), {"again": draw(x)}],
    "a draw that is not returned": lambda x: (draw(x), x)[1],
    "a draw without arguments": lambda x: mx.random.permutation(4096)[:2],
    "uniform": lambda x: mx.random.uniform(shape=(2,)),
    "a permutation": lambda x: mx.random.permutation(6),
    "nested jit": nested,
    "fl.rng inside": from_a_key,
    "next_key": with_next_key,
    "vmap": under_vmap,
    "grad": with_gradient,
    "seeding inside": seeding,
    "layers": in_a_module,
}


@pytest.mark.parametrize("function", RANDOM.values(), ids=RANDOM)
def test_random_numbers_are_those_of_the_function_itself(function: Callable[[mx.array], Any]) -> None:
    jitted = fl.jit(function)
    assert draws(jitted) == draws(function)
    assert draws(jitted, seed=8) == draws(function, seed=8)
    assert jitted.trace_count == 1
    # What was drawn before it was traced anew for another shape goes on.
    other = mx.zeros((1, 2), mx.uint32)

    def by_turns(function: Callable[[mx.array], Any]) -> list[Any]:
        mx.random.seed(5)
        return [fl.tree.map(mx.array.tolist, function(x)) for x in (ZERO, other, ZERO, other)]

    assert by_turns(jitted) == by_turns(function)


def over_rows(function: Callable[..., Any]) -> Callable[[mx.array], Any]:
    return lambda x: mx.vmap(function)(mx.zeros((3, 2), mx.uint32) + x)


def weighing(function: Callable[..., Any]) -> Callable[[mx.array], Any]:
    return lambda x: fl.value_and_grad(lambda w: (w * function(x)).sum())(mx.ones(2))


def beside(function: Callable[..., Any]) -> Callable[[mx.array], Any]:
    return lambda x: fl.value_and_grad(lambda w: (w.sum(), function(x)), has_aux=True)(mx.ones(2))


def between(function: Callable[..., Any]) -> Callable[[mx.array], Any]:
    return lambda x: (draw(x), function(x), function(x), draw(x))


def over_again(function: Callable[..., Any]) -> Callable[[mx.array], Any]:
    return lambda x: function(x)


@pytest.mark.parametrize("around", [over_rows, weighing, beside, between, over_again])
def test_random_numbers_go_on_through_other_transformations(around: Callable[..., Any]) -> None:
    expected = draws(around(draw))
    assert draws(around(fl.jit(draw))) == expected
    assert draws(fl.jit(around(draw))) == expected
    assert draws(fl.jit(around(fl.jit(draw)))) == expected


def test_no_random_number_is_drawn_twice() -> None:
    jitted = fl.jit(lambda x: [draw(x), fl.jit(draw)(x)])
    mx.random.seed(0)
    drawn = [tuple(each.tolist()) for _ in range(20) for each in (*jitted(ZERO), draw(ZERO))]
    assert len(set(drawn)) == len(drawn)


def test_fl_rng_outside_makes_a_jitted_function_pure() -> None:
    jitted = fl.jit(draw)
    mx.random.seed(1)
    state = mx.random.state[0].tolist()
    drawn = []
    for _ in range(2):
        with fl.rng(mx.random.key(9)):
            drawn.append([jitted(ZERO).tolist(), draw(ZERO).tolist(), jitted(ZERO).tolist()])
    with fl.rng(mx.random.key(9)):
        expected = [draw(ZERO).tolist() for _ in range(3)]
    assert drawn == [expected, expected]
    assert mx.random.state[0].tolist() == state


def test_a_key_may_be_an_argument() -> None:
    def with_key(key: mx.array) -> mx.array:
        with fl.rng(key):
            return draw(mx.zeros(2, mx.uint32))

    jitted = fl.jit(with_key)
    keys = mx.random.split(mx.random.key(2), 3)
    for key in keys:
        assert jitted(key).tolist() == with_key(key).tolist()
    assert mx.vmap(jitted)(keys).tolist() == [with_key(key).tolist() for key in keys]
    assert draws(lambda x: jitted(keys[0]), 2)[-1] == draws(lambda x: x, 2)[-1]


def test_a_jitted_function_that_draws_can_be_compiled_by_mlx() -> None:
    jitted = fl.jit(draw)
    mx.random.seed(4)
    assert mx.compile(jitted)(ZERO).tolist() == draws(draw, 1, seed=4)[0]
    mx.eval(mx.random.normal((2,)))
    captured = mx.compile(jitted, inputs=mx.random.state, outputs=mx.random.state)
    assert draws(captured) == draws(draw)


# What is kept alive


def collect() -> None:
    for _ in range(3):
        gc.collect()


def test_arguments_and_results_are_dropped_with_the_caller() -> None:
    jitted = fl.jit(lambda model, rest: (model.shifted(rest["x"][0]), rest))
    model, rest = layer(), {"x": [mx.ones(2), Point(mx.ones(3), layer())]}
    out = jitted(model, rest)
    again = jitted(out[0], out[1])
    fl.eval(out, again)
    watched = [part for _, part in parts((model, rest, out, again)) if isinstance(part, mx.array | fl.Module)]
    references = [weakref.ref(part) for part in watched]
    assert len(references) == 24
    del model, rest, out, again, watched
    collect()
    assert [reference() for reference in references if reference() is not None] == []


def test_what_a_trace_saw_is_dropped_with_the_trace() -> None:
    seen = []

    def function(model: Layer, x: mx.array) -> mx.array:
        out = model(x)
        seen.extend(weakref.ref(each) for each in (model, model.weight, x, out))
        return out

    jitted = fl.jit(function)
    mx.eval(jitted(layer(), mx.ones(2)))
    collect()
    assert len(seen) == 4
    assert [each() for each in seen if each() is not None] == []


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_what_a_failing_call_was_given_is_dropped(failure: type[BaseException]) -> None:
    def function(model: Layer, x: mx.array, fails: bool) -> mx.array:
        seen.extend(weakref.ref(each) for each in (model, model.weight, x))
        if fails:
            raise failure
        return model(x)

    seen: list[Any] = []
    jitted = fl.jit(function)
    model, x = layer(), mx.ones(2)
    for fails in (True, False, True):
        if fails:
            with pytest.raises(failure):
                jitted(model, x, fails)
        else:
            jitted(model, x, fails)
    seen.extend(weakref.ref(each) for each in (model, model.weight, x))
    del model, x
    collect()
    assert [each() for each in seen if each() is not None] == []


def test_a_jitted_function_is_dropped_with_all_that_it_holds() -> None:
    held = layer()
    function = functools.partial(lambda held, x: held(x), held)
    jitted, of_method, of_module = fl.jit(function), fl.jit(held.shifted), fl.jit(held)
    for each in (jitted, of_method, of_module):
        each(ONE)
    references = [weakref.ref(each) for each in (held, held.weight, jitted, of_method, of_module, function)]
    del held, jitted, of_method, of_module, function, each
    collect()
    assert [reference() for reference in references if reference() is not None] == []


def test_memory_does_not_grow_from_call_to_call() -> None:
    jitted = fl.jit(lambda model, x: model.shifted(x))
    model = Layer(mx.zeros(10_000))
    by = mx.ones(10_000)
    fl.eval(jitted(model, by), model, by)
    collect()
    before = mx.get_active_memory()
    for _ in range(20):
        model = jitted(model, by)
        fl.eval(model)
    collect()
    assert mx.get_active_memory() <= before + model.weight.nbytes


# Exceptions inside a trace


class OopsError(Exception):
    """Raised by the functions below, and by nothing else."""


def raising(x: mx.array, y: mx.array) -> mx.array:
    if y.size == 3:
        raise OopsError
    return x + y


def interrupted(x: mx.array, y: mx.array) -> mx.array:
    if y.size == 3:
        raise KeyboardInterrupt
    return x + y


def misshapen(x: mx.array, y: mx.array) -> mx.array:
    return x + y


def evaluating(x: mx.array, y: mx.array) -> mx.array:
    if y.size == 3:
        y.item()
    return x + y


def drawing_first(x: mx.array, y: mx.array) -> mx.array:
    drawn = mx.random.permutation(4096)
    if y.size == 3:
        raise OopsError
    return drawn[x.size :][:2], x + y


def in_a_key(x: mx.array, y: mx.array) -> mx.array:
    with fl.rng(mx.random.key(0)):
        return drawing_first(x, y)


def inner_jit(x: mx.array, y: mx.array) -> mx.array:
    draw(mx.zeros(2, mx.uint32))
    return fl.jit(drawing_first)(x, y)


SHARED = fl.jit(drawing_first)


def shared_inner_jit(x: mx.array, y: mx.array) -> mx.array:
    return SHARED(x, y)


def three_deep(x: mx.array, y: mx.array) -> mx.array:
    return fl.jit(fl.jit(inner_jit))(x, y)


def inner_grad(x: mx.array, y: mx.array) -> mx.array:
    return fl.value_and_grad(lambda w: drawing_first(w, y)[1].sum())(x)[1]


def inner_vmap(x: mx.array, y: mx.array) -> mx.array:
    return mx.vmap(lambda row: drawing_first(row, y))(x[None])


def inner_stateful(x: mx.array, y: mx.array) -> mx.array:
    return fl.stateful(Layer(x).shifted, drawing_first(x, y)[1])[0].weight


FAILING = [
    raising, interrupted, misshapen, evaluating, drawing_first, in_a_key, inner_jit, shared_inner_jit, three_deep,
    inner_grad, inner_vmap, inner_stateful,
]  # fmt: skip
EXCEPTIONS = (OopsError, KeyboardInterrupt, ValueError, RuntimeError)
GOOD, BAD = (ONE, TWO), (ONE, mx.ones(3))
each_failure = pytest.mark.parametrize("function", FAILING, ids=lambda function: function.__name__)


def random_state_is_whole() -> list[Any]:
    return [mx.random.normal((2,)).tolist(), draws(draw, 2), draws(fl.jit(draw), 2)]


@each_failure
def test_an_exception_leaves_the_random_state_as_it_was(function: Callable[..., Any]) -> None:
    jitted = fl.jit(function)
    mx.random.seed(2)
    state = mx.random.state[0].tolist()
    for _ in range(2):
        with pytest.raises(EXCEPTIONS):
            jitted(*BAD)
        assert mx.random.state[0].tolist() == state
    assert draw(ZERO).tolist() == draws(draw, 1, seed=2)[0]
    assert random_state_is_whole()[1] == random_state_is_whole()[2]


@each_failure
def test_the_good_call_after_a_failing_one_works(function: Callable[..., Any]) -> None:
    jitted = fl.jit(function)
    for _ in range(2):
        with pytest.raises(EXCEPTIONS):
            jitted(*BAD)
        assert alike(draws(jitted, 2, *GOOD), draws(function, 2, *GOOD))
        assert alike(draws(jitted, 2, TWO, TWO), draws(function, 2, TWO, TWO))


@each_failure
def test_the_exception_is_that_of_the_function_each_time(function: Callable[..., Any]) -> None:
    with pytest.raises(EXCEPTIONS) as plain:
        function(*BAD)
    jitted = fl.jit(function)
    for _ in range(3):
        with pytest.raises(EXCEPTIONS) as raised:
            jitted(*BAD)
        assert raised.type is plain.type or function is evaluating


@pytest.mark.parametrize("function", [misshapen, drawing_first], ids=lambda function: function.__name__)
def test_a_failing_call_does_not_cost_the_good_traces(function: Callable[..., Any]) -> None:
    jitted = fl.jit(function)
    jitted(*GOOD)
    with pytest.raises(EXCEPTIONS):
        jitted(*BAD)
    traces = jitted.trace_count
    jitted(*GOOD)
    assert jitted.trace_count == traces


@each_failure
def test_an_exception_under_mlx_compile_leaves_everything_whole(function: Callable[..., Any]) -> None:
    jitted = fl.jit(function)
    outer = mx.compile(lambda x, y: jitted(x, y))
    mx.random.seed(2)
    state = mx.random.state[0].tolist()
    with pytest.raises(EXCEPTIONS):
        outer(*BAD)
    assert mx.random.state[0].tolist() == state
    assert random_state_is_whole()[1] == random_state_is_whole()[2]
    assert alike(draws(jitted, 2, *GOOD), draws(function, 2, *GOOD))


@each_failure
def test_a_function_may_catch_what_a_jitted_function_in_it_raised(function: Callable[..., Any]) -> None:
    inner = fl.jit(function)

    def outer(x: mx.array, y: mx.array) -> Any:
        try:
            return inner(x, y)
        except EXCEPTIONS:
            return "caught", draw(mx.zeros(2, mx.uint32)), inner(x, x)

    jitted = fl.jit(outer)
    mx.random.seed(2)
    first = [fl.tree.map(mx.array.tolist, outer(*BAD)) for _ in range(3)]
    mx.random.seed(2)
    assert [fl.tree.map(mx.array.tolist, jitted(*BAD)) for _ in range(3)] == first
    assert alike(draws(jitted, 2, *GOOD), draws(function, 2, *GOOD))


# Threads


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Return what each function returns, all of them having started at once in threads of their own."""
    barrier = threading.Barrier(len(functions))

    def started(function: Callable[[], Any]) -> Any:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [each.result(timeout=60) for each in [pool.submit(started, function) for function in functions]]


def test_threads_may_make_the_first_call_at_once() -> None:
    def call(jitted: Callable[..., Any], number: int) -> list[float]:
        return jitted(layer(number), mx.ones(2))[0].tolist()

    for _ in range(5):
        jitted = fl.jit(lambda model, x: (model(x), {"x": [x]}))
        found = in_threads(*[functools.partial(call, jitted, number) for number in range(6)])
        assert found == [[number + 1.0] * 2 for number in range(6)]


def test_threads_may_call_with_different_structures_at_once() -> None:
    jitted = fl.jit(double)
    made = [
        lambda: mx.ones(2), lambda: [mx.ones(2)], lambda: layer(3.0), lambda: layer().freeze(), lambda: mx.ones(3),
        lambda: {"a": mx.ones(2), "n": 1},
    ]  # fmt: skip

    def repeatedly(make: Callable[[], Any]) -> bool:
        return all(alike(jitted(make()), double(make())) for _ in range(20))

    assert in_threads(*[functools.partial(repeatedly, make) for make in made]) == [True] * len(made)


def test_each_thread_draws_its_own_random_numbers() -> None:
    jitted = fl.jit(draw)
    expected = [draws(draw, 20, mx.zeros(2, mx.uint32), seed=seed) for seed in range(6)]

    def drawn(seed: int) -> list[Any]:
        return draws(jitted, 20, mx.zeros(2, mx.uint32), seed=seed)

    assert in_threads(*[functools.partial(drawn, seed) for seed in range(6)]) == expected
    assert drawn(0) == expected[0]


def test_an_exception_in_one_thread_does_not_reach_another() -> None:
    jitted = fl.jit(drawing_first)

    def good(seed: int) -> list[Any]:
        return draws(jitted, 20, mx.ones(2), mx.ones(2), seed=seed)

    def bad() -> None:
        for _ in range(20):
            with pytest.raises(OopsError):
                jitted(mx.ones(2), mx.ones(3))

    expected = [draws(drawing_first, 20, mx.ones(2), mx.ones(2), seed=seed) for seed in range(3)]
    found = in_threads(bad, *[functools.partial(good, seed) for seed in range(3)], bad)
    assert found == [None, *expected, None]


@reads_from_outside
def test_a_jitted_function_never_answers_for_one_that_was_dropped() -> None:
    """MLX knows a compiled function by its address, in each thread."""
    asked: queue.Queue[Any] = queue.Queue()
    answered: queue.Queue[Any] = queue.Queue()

    def answer() -> None:
        while (function := asked.get()) is not None:
            answered.put(function(mx.zeros(2)).tolist())
            del function

    def elsewhere(function: Any) -> Any:
        asked.put(function)
        return answered.get(timeout=60)

    thread = threading.Thread(target=answer)
    thread.start()
    wrong = []
    try:
        for number in range(20):
            added = mx.array([number, number], mx.float32)
            jitted = fl.jit(lambda x, added=added: x + added)
            answers = [jitted(mx.zeros(2)).tolist(), elsewhere(jitted), jitted(mx.zeros(2)).tolist()]
            if number % 2:
                answers = [elsewhere(jitted), *answers]
            if any(each != [number, number] for each in answers):
                wrong.append((number, answers))
            del jitted
            gc.collect()
    finally:
        asked.put(None)
        thread.join()
    assert wrong == []


def test_traces_of_a_thread_that_has_ended_do_no_harm() -> None:
    jitted = fl.jit(double)
    for number in range(5):
        assert in_threads(lambda n=number: jitted(layer(n)).weight.tolist()) == [[2.0 * number] * 2]
    assert jitted(layer(7)).weight.tolist() == [14.0] * 2


# What is reached inside


@law
@given(trees())
def test_inside_there_are_the_same_classes_and_static_values(tree: Any) -> None:
    seen: list[Any] = []

    def function(given: Any) -> None:
        seen.append([(path, type(part)) for path, part in parts(given)])

    fl.jit(function)(tree)
    assert seen == [[(path, type(part)) for path, part in parts(tree)]]
    assert len(arrays_of(tree)) == len(fl.tree.leaves(tree))


def test_the_random_state_is_whole_when_the_second_try_at_a_trace_fails() -> None:
    outside, calls = mx.ones(2), []

    def function(x: mx.array) -> mx.array:
        calls.append(mx.random.normal((2,)))
        if len(calls) == 2:
            raise OopsError
        return x + outside

    jitted = fl.jit(function)
    mx.random.seed(0)
    with pytest.warns(fl.CapturedArrayWarning), pytest.raises(OopsError):
        jitted(outside)
    drawn = mx.random.normal((2,)).tolist()
    mx.random.seed(0)
    assert drawn == mx.random.normal((2,)).tolist()
