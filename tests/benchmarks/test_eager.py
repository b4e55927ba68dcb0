"""Everything outside jit beside ``mlx.nn`` and ``mlx.optimizers``, which write in place: 12 blocks, 109 modules, 192 arrays."""

import itertools
import os
import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten
from optree.integrations import attrs as optree_attrs

import frostleaf as fl

DIMS, BLOCKS = 16, 12
LINEAR, NORMS = ("query", "key", "value", "out", "up", "down"), ("norm1", "norm2")


class Block(fl.Module):
    query: fl.nn.Linear
    key: fl.nn.Linear
    value: fl.nn.Linear
    out: fl.nn.Linear
    up: fl.nn.Linear
    down: fl.nn.Linear
    norm1: fl.nn.LayerNorm
    norm2: fl.nn.LayerNorm

    def __init__(self):
        for name in LINEAR:
            setattr(self, name, fl.nn.Linear(DIMS, DIMS))
        for name in NORMS:
            setattr(self, name, fl.nn.LayerNorm(DIMS))

    def __call__(self, x):
        y = self.norm1(x)
        x = x + self.out(self.query(y) * self.key(y) + self.value(y))
        return x + self.down(fl.nn.relu(self.up(self.norm2(x))))


class Model(fl.Module):
    layers: tuple[Block, ...]

    def __init__(self):
        self.layers = [Block() for _ in range(BLOCKS)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class MLXBlock(nn.Module):
    def __init__(self):
        super().__init__()
        for name in LINEAR:
            setattr(self, name, nn.Linear(DIMS, DIMS))
        for name in NORMS:
            setattr(self, name, nn.LayerNorm(DIMS))

    def __call__(self, x):
        y = self.norm1(x)
        x = x + self.out(self.query(y) * self.key(y) + self.value(y))
        return x + self.down(nn.relu(self.up(self.norm2(x))))


class MLXModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [MLXBlock() for _ in range(BLOCKS)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def loss(model, x):
    return model(x).square().mean()


class Ours:
    """A training run whose model and state are new after every step, as they are in real ones."""

    def __init__(self):
        self.model, self.optimizer = Model(), fl.optim.AdamW(1e-3)
        self.state = self.optimizer.init(self.model)
        self.gradients = fl.grad(loss)(self.model, X)
        fl.eval(self.model, self.state, self.gradients)

    def forward(self):
        return self.model(X)

    def value_and_grad(self):
        return fl.value_and_grad(loss)(self.model, X)

    def update(self):
        self.model, self.state = self.optimizer.update(self.model, self.gradients, self.state)

    def step(self):
        _, gradients = fl.value_and_grad(loss)(self.model, X)
        self.model, self.state = self.optimizer.update(self.model, gradients, self.state)

    def init(self):
        return self.optimizer.init(self.model)

    def freeze(self):
        self.model = self.model.freeze().unfreeze()

    def eval(self):
        self.model = self.model.eval().train()

    def astype(self):
        self.model = self.model.astype(mx.bfloat16).astype(mx.float32)

    def apply(self):
        self.model = self.model.apply(lambda array: array + 0)

    def set(self):
        self.model = self.model.at("layers.3.query.weight").set(next(WEIGHTS))

    def save(self):
        self.model.save_weights(self.path)

    def load(self):
        self.model = self.model.load_weights(self.path)

    def all(self):
        return fl.tree.leaves((self.model, self.state))


class MLX:
    """The same run in place."""

    def __init__(self):
        self.model, self.optimizer = MLXModel(), optim.AdamW(1e-3)
        self.optimizer.init(self.model.trainable_parameters())
        self.loss_and_gradients = nn.value_and_grad(self.model, loss)
        self.gradients = self.loss_and_gradients(self.model, X)[1]
        mx.eval(self.model.state, self.optimizer.state, self.gradients)

    def forward(self):
        return self.model(X)

    def value_and_grad(self):
        return self.loss_and_gradients(self.model, X)

    def update(self):
        self.optimizer.update(self.model, self.gradients)

    def step(self):
        _, gradients = self.loss_and_gradients(self.model, X)
        self.optimizer.update(self.model, gradients)

    def init(self):
        optimizer = optim.AdamW(1e-3)
        optimizer.init(self.model.trainable_parameters())
        return optimizer.state

    def freeze(self):
        self.model.freeze()
        self.model.unfreeze()

    def eval(self):
        self.model.eval()
        self.model.train()

    def astype(self):
        self.model.set_dtype(mx.bfloat16)
        self.model.set_dtype(mx.float32)

    def apply(self):
        self.model.apply(lambda array: array + 0)

    def set(self):
        self.model.layers[3].query.weight = next(WEIGHTS)

    def save(self):
        self.model.save_weights(self.path)

    def load(self):
        self.model.load_weights(self.path)

    def all(self):
        return self.model.state, self.optimizer.state


X, WEIGHTS = mx.ones((2, DIMS)), itertools.cycle([mx.ones((DIMS, DIMS)) for _ in range(3)])
# What is timed, what the row says, and the most that it may be.
IN_TURN = {
    "forward": ("an eager forward pass", 1.0),
    "step": ("an eager training step, AdamW", 1.0),
    "update": ("optimizer.update", 1.0),
    "value_and_grad": ("value_and_grad", 1.0),
    "init": ("optimizer.init", 1.0),
    "freeze": ("freeze().unfreeze()", 1.0),
    "eval": ("eval().train()", 1.0),
    "astype": ("astype there and back", 1.0),
    "apply": ("apply", 1.0),
    "set": ('at("layers.3.query.weight").set', 12.0),
    "save": ("save_weights", 1.5),
    "load": ("load_weights", 1.5),
}


@pytest.mark.parametrize("name", IN_TURN)
def test_beside_mlx(name, table, interleaved, tmp_path):
    what, limit = IN_TURN[name]
    ours, theirs = Ours(), MLX()
    ours.path, theirs.path = (str(tmp_path / f"{each}.safetensors") for each in ("ours", "theirs"))
    for each in (ours, theirs):
        each.save()

    turns = itertools.cycle(
        [ours, theirs]
    )  # each side is evaluated after its own turn: both find the other's arrays in the caches

    def between(result):
        mx.eval(fl.tree.leaves(result) if isinstance(result, fl.Module) else result)
        mx.eval(next(turns).all())

    taken = interleaved(getattr(ours, name), getattr(theirs, name), rounds=60, between=between)
    table.add(f"{what} / mlx.nn", *taken, limit=limit)


def freeze_half(model):
    """Freeze the first half of the blocks of MLX's model."""
    for block in model.layers[: BLOCKS // 2]:
        block.freeze()


def by_name(model):
    """Return the parameters of one of MLX's models in a dict without others inside."""
    return dict(tree_flatten(model.parameters()))


# What the row says, our optimizer, and what makes MLX's.
UPDATES = {
    "momentum": ("SGD with momentum", fl.optim.SGD(1e-3, momentum=0.9), lambda: optim.SGD(1e-3, momentum=0.9)),
    "clipped": (
        "chain(clip_by_global_norm, AdamW)",
        fl.optim.chain(fl.optim.clip_by_global_norm(1.0), fl.optim.AdamW(1e-3)),
        lambda: optim.AdamW(1e-3),
    ),
    "half": ("half of the model frozen, AdamW", fl.optim.AdamW(1e-3), lambda: optim.AdamW(1e-3)),
    "dict": ("a plain dict, AdamW", fl.optim.AdamW(1e-3), lambda: optim.AdamW(1e-3)),
}


@pytest.mark.parametrize("name", UPDATES)
def test_updates(name, table, interleaved):
    what, optimizer, make = UPDATES[name]
    rule, theirs, ours = make(), MLXModel(), Model()
    if name == "half":
        ours = ours.at(tuple(f"layers.{number}" for number in range(BLOCKS // 2))).freeze()
        freeze_half(theirs)
    gradients = nn.value_and_grad(theirs, loss)(theirs, X)[1]
    our_gradients = fl.grad(loss)(ours, X)
    if name == "dict":
        theirs, gradients = by_name(theirs), dict(tree_flatten(gradients))
        ours = {path: array + 0 for path, array in theirs.items()}
        our_gradients = {path: array + 0 for path, array in gradients.items()}
    rule.init(theirs if name == "dict" else theirs.trainable_parameters())
    now = {"ours": (ours, optimizer.init(ours)), "theirs": theirs}
    del ours, theirs

    def update():
        model, state = now["ours"]
        now["ours"] = optimizer.update(model, our_gradients, state)

    def update_of_mlx():
        if name == "dict":
            now["theirs"] = rule.apply_gradients(gradients, now["theirs"])
        else:
            rule.update(now["theirs"], optim.clip_grad_norm(gradients, 1.0)[0] if name == "clipped" else gradients)

    def ours():
        return fl.tree.leaves(now["ours"])

    def theirs():
        model = now["theirs"]
        return model if name == "dict" else model.state, rule.state

    turns = itertools.cycle([ours, theirs])  # as above

    def between(_):
        mx.eval(next(turns)())

    mx.eval(gradients, fl.tree.leaves(our_gradients), ours(), theirs())
    taken = interleaved(update, update_of_mlx, rounds=60, between=between)
    table.add(f"optimizer.update: {what} / mlx", *taken, limit=1.0)


def test_building(table, interleaved):
    taken = interleaved(Model, MLXModel, rounds=40, between=lambda model: mx.eval(model.parameters()))
    table.add("building the model / mlx.nn", *taken, limit=1.2)


@pytest.mark.parametrize("late", [False, True], ids=["built", "late"])
@pytest.mark.parametrize("view", ["parameters", "trainable_parameters", "named_modules"])
def test_views_of_a_new_model(view, late, table, interleaved):
    theirs = MLX().model
    models = iter([Model().apply(lambda array: array + 0) if late else Model() for _ in range(43)])
    taken = interleaved(lambda: getattr(next(models), view)(), getattr(theirs, view), rounds=40)
    what = "that an edit returned, put together first" if late else "that was just built"
    table.add(f"{view}() of a model {what} / mlx.nn", *taken, limit=1.2 if late else 1.0)


def test_repr(table, interleaved):
    ours, theirs = Ours(), MLX().model

    def fresh():
        return repr(ours.model)

    taken = interleaved(fresh, lambda: repr(theirs), rounds=20, between=lambda _: ours.update())
    table.add("repr / mlx.nn", *taken, limit=1.0)


def test_the_first_call_of_a_jitted_step(table, interleaved):
    ours, theirs = Ours(), MLX()
    optimizer = ours.optimizer

    def first():
        def step(model, state, x):
            _, gradients = fl.value_and_grad(loss)(model, x)
            return optimizer.update(model, gradients, state)

        return fl.jit(step)(ours.model, ours.state, X)

    def first_of_mlx():
        def step(x):
            _, gradients = theirs.loss_and_gradients(theirs.model, x)
            theirs.optimizer.update(theirs.model, gradients)

        state = [theirs.model.state, theirs.optimizer.state]
        return mx.compile(step, inputs=state, outputs=state)(X)

    taken = interleaved(first, first_of_mlx, rounds=10, between=lambda _: mx.eval(ours.all(), theirs.all()))
    table.add("the first call of a jitted training step / mx.compile", *taken, limit=1.1)


@pytest.mark.parametrize("what", ["forward pass", "value_and_grad"])
def test_the_first_call_of_a_jitted(what, table, interleaved):
    ours, theirs = Ours(), MLX()

    def first():
        def forward(model, x):
            return model(x)

        def with_gradients(model, x):
            return fl.value_and_grad(loss)(model, x)

        return fl.jit(forward if what == "forward pass" else with_gradients)(ours.model, X)

    def first_of_mlx():
        def forward(x):
            return theirs.model(x)

        def with_gradients(x):
            return theirs.loss_and_gradients(theirs.model, x)

        state = [theirs.model.state]
        return mx.compile(forward if what == "forward pass" else with_gradients, inputs=state, outputs=state)(X)

    taken = interleaved(first, first_of_mlx, rounds=30, between=lambda _: mx.eval(ours.all(), theirs.all()))
    table.add(f"the first call of a jitted {what} / mx.compile", *taken, limit=1.1)


class Fields:
    weight: mx.array
    bias: mx.array
    groups: int
    padding: tuple
    dilation: tuple


def test_defining_a_class(table, interleaved):
    def frozen():
        return type("Layer", (fl.Module,), dict(vars(Fields)))

    def theirs():
        options = {"frozen": True, "slots": False, "eq": False, "repr": False}
        return optree_attrs.define(type("Layer", (), dict(vars(Fields))), namespace="benchmark", **options)

    table.add("defining a class / attrs in optree", *interleaved(frozen, theirs, rounds=60), limit=1.5)


IMPORTING = """
import sys, time
import {}
start = time.perf_counter()
{}
sys.stdout.write(str(time.perf_counter() - start))
"""
IMPORT = "import frostleaf as fl"
# What a training program uses first; what it uses is imported then.
USE = "fl.Module, fl.nn.Linear, fl.nn.relu, fl.optim.AdamW, fl.value_and_grad, fl.jit"


@pytest.mark.parametrize(
    ("what", "ours", "limit"),
    [
        ("importing frostleaf, own part", IMPORT, 0.6),
        ("importing frostleaf and what a training program uses, own part", f"{IMPORT}; {USE}", 1.0),
    ],
)
def test_importing(what, ours, limit, table):
    taken = [], []
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # what is imported again has its bytecode
    others = "mlx.nn, mlx.optimizers, optree, attrs"
    for number in range(12):
        for times, before, code in zip(taken, (others, "mlx.core"), (ours, f"import {others}"), strict=True):
            command = [sys.executable, "-c", IMPORTING.format(before, code)]
            run = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
            if number >= 2:
                times.append(float(run.stdout))
    table.add(f"{what} / mlx.nn, mlx.optimizers, optree and attrs", *taken, "ms", limit=limit)
