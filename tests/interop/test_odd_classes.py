"""Classes of MLX's modules that do unusual things: what they inherit, override, return and are called."""

import abc
import asyncio
import threading
import typing

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop.checks import Base, X, close, same

import frostleaf as fl


def test_modules_that_a_method_returns():
    class Making(Base):
        def make(self):
            return {"new": nn.Linear(3, 3), "own": [self.inner], "call": self.inner.__call__}

        def back(self, module):
            return module

    tree = fl.from_mlx(Making(inner=nn.Linear(3, 3)))
    made = tree.make()
    assert [type(made["new"]).__mlx__, made["own"]] == [nn.Linear, [tree.inner]]
    assert same(made["call"](X), tree.inner(X))
    given = nn.Linear(2, 2)
    assert tree.back(given) is given


def test_what_python_keeps_of_annotations_is_no_method():
    def annotate(form):
        return {"factor": int}

    # As Python 3.14 makes a class with an annotation.
    names = {"__annotate_func__": annotate, "__annotations_cache__": {"factor": int}, "factor": 2}
    tree = fl.from_mlx(type("Annotated", (Base,), names)(inner=nn.Linear(3, 3)))
    assert tree.factor == 2
    assert not {"__annotate__", *names}.difference({"factor"}) & {name for cls in type(tree).__mro__ for name in vars(cls)}


def test_bases_and_super():
    item = typing.TypeVar("item")

    class Mixin:
        factor = 2

        @property
        def doubled(self):
            return self.weight * self.factor

        def scaled(self, x):
            return x * self.weight

    class Above(nn.Module, Mixin, typing.Generic[item], abc.ABC):
        def __init__(self):
            super().__init__()
            self.weight = mx.ones(3) * 3

        @abc.abstractmethod
        def middle(self, x): ...

        def __call__(self, x):
            return self.middle(x) + 1

    class Below(Above[int]):
        def middle(self, x):
            return self.scaled(x)

        def __call__(self, x):
            return super().__call__(x) * 2

    tree, model = fl.from_mlx(Below()), Below()
    assert same(tree(X), model(X))
    assert same((tree.doubled, tree.scaled(X), tree.middle(X)), (model.doubled, model.scaled(X), model.middle(X)))
    assert tree.factor == 2
    assert tree.at(Above).paths() == [""]


def test_methods_that_are_coroutines():
    class Waiting(Base):
        async def answer(self, x):
            await asyncio.sleep(0)
            return self.weight * x

    tree = fl.from_mlx(Waiting())

    async def both():
        return await asyncio.gather(tree.answer(X), tree.answer(2 * X))

    assert same(asyncio.run(both()), [X, 2 * X])


def test_threads_make_one_class():
    class Fresh(Base):
        pass

    model, found = Fresh(), []
    threads = [threading.Thread(target=lambda: found.append(type(fl.from_mlx(model)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_methods_that_a_class_overrides():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.calls = 0

        def __len__(self):
            return 7

        def __getitem__(self, key):
            return self.inner.weight[key] if isinstance(key, int) else super().__getitem__(key)

        def __getattr__(self, name):
            if name == "virtual":
                return self.inner.bias
            return super().__getattr__(name)

        def train(self, mode=True):
            super().train(mode)
            self.inner.freeze()
            return self

        def unfreeze(self, *args, **kwargs):
            super().unfreeze(*args, **kwargs)
            self.inner.freeze(keys="bias")

        def _set_training_mode(self, mode):
            super()._set_training_mode(mode)
            self.mode_seen = mode

        def __call__(self, x):
            return self.inner(x)

    model = Odd()
    tree = fl.from_mlx(model)
    assert len(tree) == 7
    assert same(tree[0], model[0])
    assert same(tree.virtual, model.virtual)
    with pytest.raises(AttributeError):
        _ = tree.nothing
    for edit in (lambda m: m.train(False), lambda m: m.unfreeze(), lambda m: m.eval()):
        after = edit(fl.from_mlx(Odd()))
        changed = Odd()
        edit(changed)
        assert fl.tree.structure(after) == fl.tree.structure(fl.from_mlx(changed))
    sequence, theirs = fl.from_mlx(nn.Sequential(Odd())), nn.Sequential(Odd())
    theirs.eval()
    assert fl.tree.structure(sequence.eval()) == fl.tree.structure(fl.from_mlx(theirs))
    assert same(tree(X), model(X))


@pytest.mark.parametrize("frozen", [False, True])
def test_functions_that_run_again_for_a_gradient(frozen):
    class Again(Base):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def __call__(self, x):
            y = nn.utils.checkpoint(self.inner)(x * self.weight)
            return mx.checkpoint(lambda y: y * self.weight)(y)

    model = Again()
    if frozen:
        model.inner.freeze()
    tree = fl.from_mlx(model)

    def loss(model, x):
        return model(model(x)).square().sum()

    value, grads = nn.value_and_grad(model, loss)(model, X)
    for _ in range(2):
        ours, tree_grads = fl.value_and_grad(loss)(tree, X)
        assert same(ours, value)
        if frozen:  # what mx.checkpoint closes over has no gradient through it
            assert tree_grads.inner.weight is None
        assert same(tree_grads.weight, grads["weight"])
    assert close(fl.jit(fl.grad(loss))(tree, X).weight, grads["weight"])
    assert close(fl.vjp(lambda tree: loss(tree, X), (tree,), (mx.array(1.0),))[1][0].weight, grads["weight"])
    assert same(tree(X), model(X))


def test_names_of_ours():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Linear(3, 3)
            self.tie = 3
            self.replace = mx.ones(3)

        def update_state(self):
            return self.tie

        def summary(self):
            return "theirs"

        def __call__(self, x):
            return self.at(x) * self.tie + self.replace

    model = Named()
    tree = fl.from_mlx(model)
    assert same(tree(X), model(X))
    assert fl.tree.paths(tree) == ["at.weight", "at.bias", "replace"]
    edited = tree.at("at.bias").set(mx.ones(3))
    model.at.bias = mx.ones(3)
    assert same(edited(X), model(X))
    assert (tree.mlx.tie, tree.mlx.summary()) == (3, "theirs")
    assert same(tree.mlx.at(X), tree.mlx.at(X))
    assert type(tree.mlx.at).__name__ == "Linear"
    assert fl.tree.equal(fl.from_mlx(fl.to_mlx(tree)), tree)


def test_names_that_are_no_identifiers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("0", "a-b", "class"):
                setattr(self, name, nn.Linear(3, 3))

        def __call__(self, x):
            for name in ("0", "a-b", "class"):
                x = getattr(self, name)(x)
            return x

    model = Odd()
    tree = fl.from_mlx(model)
    assert fl.tree.paths(tree)[0] == "0.weight"
    assert same(tree.at("a-b.bias").set(mx.zeros(3)).at("a-b.bias").get(), mx.zeros(3))
    assert same(tree(X), model(X))
    assert fl.jit(tree)(X).shape == (3,)


def test_checkpointed_functions():
    class Checkpointed(Base):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def __call__(self, x):
            return nn.utils.checkpoint(self.inner)(x) * self.weight

    model = Checkpointed()
    tree = fl.from_mlx(model)
    value, grads = nn.value_and_grad(model, lambda model, x: model(x).sum())(model, X)
    ours, tree_grads = fl.value_and_grad(lambda tree, x: tree(x).sum())(tree, X)
    assert same(ours, value)
    assert same(tree_grads.inner.weight, grads["inner"]["weight"])
    assert same(tree(X), model(X))
