"""What a trace keeps alive: nothing that the caller has dropped, wherever in the arguments it stood."""

import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import mlx.core as mx
import pytest

import frostleaf as fl

X = mx.arange(3.0)


@dataclasses.dataclass(frozen=True)
class Holding:
    fn: Callable


@attrs.frozen
class AttrsHolding:
    fn: Callable


class Tagged(tuple):
    __slots__ = ()


class Block(fl.Module):
    weight: mx.array
    activation: Any = fl.static()

    def __init__(self, activation):
        self.weight = mx.ones(3)
        self.activation = activation

    def __call__(self, x):
        fn = self.activation
        fn = fn.fn if isinstance(fn, Holding | AttrsHolding) else fn[0] if isinstance(fn, tuple) else fn
        return fn(x * self.weight)


class OtherBlock(Block):
    pass


class NeverLate(Block):
    """A class that is put together at once."""

    def __getattr__(self, name):
        raise AttributeError(name)


class Table(fl.Module):
    block: Any

    def __call__(self, x):
        return self.block["only"](x)


# What may hold a function, and how to call it there.
HOLDERS = {
    "partial": (functools.partial, lambda held, x: held(x)),
    "partial of a partial": (
        lambda fn: functools.partial(functools.partial(map_one, fn=fn)), lambda held, x: held(x)
    ),
    "argument of a partial": (lambda fn: functools.partial(map_one, fn=fn), lambda held, x: held(x)),
    "dataclass": (Holding, lambda held, x: held.fn(x)),
    "attrs": (AttrsHolding, lambda held, x: held.fn(x)),
    "tuple": (lambda fn: Tagged([fn]), lambda held, x: held[0](x)),
    "in a set": (lambda fn: frozenset([fn]), lambda held, x: next(iter(held))(x)),
    "dataclass in a partial": (lambda fn: functools.partial(call_held, Holding(fn)), lambda held, x: held(x)),
    "module": (Block, lambda held, x: held(x)),
    "module that is put together at once": (NeverLate, lambda held, x: held(x)),
    "module with a dataclass": (lambda fn: Block(Holding(fn)), lambda held, x: held(x)),
    "module with a tuple": (lambda fn: Block([fn, 1]), lambda held, x: held(x)),
    "module in containers": (lambda fn: [{"a": Block(fn)}], lambda held, x: held[0]["a"](x)),
    "module in a module": (lambda fn: Table({"only": Block(fn)}), lambda held, x: held(x)),
}  # fmt: skip


def map_one(x, fn):
    return fn(x)


def call_held(held, x):
    return held.fn(x)


# What a step returns besides the number: nothing, what it was given, an edited copy.
RETURNED_TOO = {
    "nothing": lambda held: None,
    "itself": lambda held: held,
    "arrays mapped": lambda held: fl.tree.map(lambda leaf: leaf * 1, held),
    "modes": lambda held: held.eval().freeze() if isinstance(held, fl.Module) else held,
    "casts": lambda held: held.astype(mx.float16) if isinstance(held, fl.Module) else held,
}


class Big:
    pass


@pytest.mark.parametrize("shapeless", [False, True])
@pytest.mark.parametrize("returned", RETURNED_TOO)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_function_in_an_argument_is_let_go_and_so_is_its_trace(holder, returned, shapeless):
    hold, call = HOLDERS[holder]
    too = RETURNED_TOO[returned]
    jitted = fl.jit(lambda held, x: (call(held, x), too(held)), shapeless=shapeless)
    references = []
    for number in range(5):
        big = Big()
        fn = lambda x, number=number, big=big: x + number  # noqa: E731
        references += [weakref.ref(fn), weakref.ref(big)]
        for _ in range(3):  # built anew, while the function lives
            held = hold(fn)
            out, back = jitted(held, X)
            assert out.tolist() == (X + number).tolist()
            assert returned == "nothing" or call(back, X).tolist() == (X + number).tolist()
        assert jitted.trace_count == number + 1
    del fn, big, held
    if returned != "nothing":
        gc.collect()
        assert references[-2]() is not None  # the last result holds it
        assert call(back, X).tolist() == (X + 4).tolist()
    del back
    gc.collect()
    assert [each() for each in references] == [None] * 10
    jitted(hold(lambda x: x), X)
    assert len(jitted.options.programs) == 1


@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
@pytest.mark.parametrize("hold", [lambda fn: fn, functools.partial, Block])
def test_the_object_of_a_method_in_an_argument_is_let_go(hold):
    class Trainer:
        def double(self, x):
            return x * 2

    jitted = fl.jit(lambda fn, x: (fn(x), fn))
    trainers = [Trainer() for _ in range(3)]
    references = [weakref.ref(each) for each in trainers]
    for each in trainers:
        assert [jitted(hold(each.double), X)[0].tolist() for _ in range(3)] == [[0, 2, 4]] * 3
    assert jitted.trace_count == 3
    del trainers, each
    gc.collect()
    assert [each() for each in references] == [None] * 3


def test_what_holds_the_same_function_comes_back_as_it_was():
    jitted = fl.jit(lambda *held: held[::-1])
    for fn in (lambda x: x + 1, lambda x: x + 2):
        for _ in range(3):
            held = Block(fn), Block([fn]), OtherBlock(fn), Block(fn).eval(), OtherBlock([fn]).freeze(), fn, Holding(fn)
            back = jitted(*held)[::-1]
            assert fl.tree.structure(back) == fl.tree.structure(held)
            assert fl.tree.paths(back) == fl.tree.paths(held)
            assert [type(each) for each in back] == [type(each) for each in held]
    assert jitted.trace_count == 2


class AnyAttribute:
    def __getattr__(self, name):
        return 1


@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
@pytest.mark.parametrize("hold", [lambda held: held, lambda held: functools.partial(map_one, fn=held), Block])
def test_an_object_with_any_attribute_is_let_go(hold):
    jitted = fl.jit(lambda fn, x: x + 1)
    held = AnyAttribute()
    alive = weakref.ref(held)
    assert [jitted(hold(held), X).tolist() for _ in range(3)] == [[1, 2, 3]] * 3
    assert jitted.trace_count == 1
    del held
    gc.collect()
    assert alive() is None


def test_a_function_of_a_script_is_let_go_when_it_is_defined_anew(monkeypatch):
    jitted = fl.jit(lambda model, x: (model, model(x)))
    references = []
    for number in range(3):
        act = lambda x, number=number: x + number  # noqa: E731
        act.__module__, act.__qualname__ = "__main__", "act"
        monkeypatch.setattr("__main__.act", act, raising=False)
        references.append(weakref.ref(act))
        for _ in range(3):
            assert jitted(Block(act), X)[1].tolist() == (X + number).tolist()
    assert jitted.trace_count == 3
    monkeypatch.undo()
    del act
    gc.collect()
    assert [each() for each in references] == [None] * 3


@pytest.mark.parametrize("cls", [Block, NeverLate])
def test_a_result_with_what_can_not_be_hashed_lets_its_functions_go(cls):
    jitted = fl.jit(lambda model, x: (model, bytearray(b"a"), [x + 1]))
    fn = lambda x: x + 1  # noqa: E731
    alive = weakref.ref(fn)
    outs = [jitted(cls(fn), X) for _ in range(3)]
    assert all(model(X).tolist() == out.tolist() == [1, 2, 3] for model, _, [out] in outs)
    assert len({id(made) for _, made, _ in outs}) == 3
    assert jitted.trace_count == 1
    del fn, outs
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("inside", ["grad", "vmap", "jit"])
def test_a_trace_inside_another_transformation_lets_its_functions_go(inside):
    jitted = fl.jit(lambda model, x: (model(x), model))

    def call(model):
        if inside == "grad":
            return fl.grad(lambda model: jitted(model, X)[0].sum())(model)
        if inside == "vmap":
            return fl.vmap(lambda x: jitted(model, x)[0])(mx.stack([X, X]))
        return outer(model, X)

    outer = fl.jit(lambda model, x: jitted(model, x))
    references = []
    for number in range(3):
        fn = lambda x, number=number: x * number  # noqa: E731
        references.append(weakref.ref(fn))
        for _ in range(3):
            fl.eval(call(Block(fn)))
    del fn
    gc.collect()
    assert [each() for each in references] == [None] * 3


def test_an_error_in_a_trace_leaves_nothing_behind():
    def fails(model, x):
        raise ValueError("no")

    jitted = fl.jit(fails)
    fn = lambda x: x  # noqa: E731
    alive = weakref.ref(fn)
    with pytest.raises(ValueError, match="no"):
        jitted(Block(fn), X)
    del fn
    gc.collect()
    assert alive() is None
    assert not jitted.options.programs


@pytest.mark.parametrize("wrap", [lambda fn: fn, Holding])
def test_a_training_loop_traces_once_and_lets_its_functions_go(wrap):
    @fl.jit
    def step(model, x):
        loss, grads = fl.value_and_grad(lambda model: model(x).sum())(model)
        return loss, model.update(fl.tree.map(lambda leaf: leaf * 1, grads))

    fn = lambda x: x * 2  # noqa: E731
    for _ in range(3):
        model = Block(wrap(fn))
        for _ in range(3):
            _, model = step(model, X)
        assert model.activation == wrap(fn)
    assert step.trace_count == 1
    alive = weakref.ref(fn)
    del fn
    gc.collect()
    step(model, X)
    assert step.trace_count == 1
    del model
    gc.collect()
    assert alive() is None


def test_a_result_of_another_thread_holds_what_it_was_given():
    step = fl.jit(lambda model, x: (model(x), model))
    fn = lambda x: x + 1  # noqa: E731

    mx.eval(X)  # in the thread that it belongs to

    def one_step(fn):
        out = step(Block(fn), X)
        fl.eval(out)
        return out

    alive = weakref.ref(fn)
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(one_step, [fn] * 40))
    del fn
    assert all(model(X).tolist() == out.tolist() == [1, 2, 3] for out, model in outs)
    del outs
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("activation", [fl.nn.relu, fl.nn.softplus, mx.tanh, fl.nn.GELU()])
def test_a_model_that_is_built_anew_is_traced_once(activation):
    step = fl.jit(lambda model, x: (model(x), model))
    for _ in range(3):
        step(Block(activation), X)
        gc.collect()
    assert step.trace_count == 1
