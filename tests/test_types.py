"""What type checkers say about code that uses frostleaf: an error on each line that ends with ``# error``, and no other.

Where mypy alone can't know better, the line ends with ``# error: mypy``.
"""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import frostleaf as fl

ROOT = Path(__file__).parents[1]
LISTED = [getattr(fl.nn, name) for name in fl.nn.__all__]
LAYERS = [value for value in LISTED if isinstance(value, type) and issubclass(value, fl.Module)]

USER = """
import mlx.core as mx

import frostleaf as fl


class Inherited(fl.nn.Linear, init=False):
    def twice(self, x: mx.array) -> mx.array:
        return self(x) + self(x)


class Written(fl.nn.Linear):
    def __init__(self, dims: int) -> None:
        super().__init__(dims, dims)


class Generated(fl.Module):
    weight: mx.array
    layer: fl.nn.Linear
    scale: float = fl.static(default=1.0)


class InheritedFromGenerated(Generated, init=False):
    pass


Inherited(3, 4)
Inherited(3, 4, bias=False, dtype=mx.float16, key=mx.random.key(0)).twice(mx.ones((2, 3), mx.float16))
Inherited("a")  # error
Inherited("a", 4)  # error
Inherited(3, 4, weight=mx.ones(3))  # error
Inherited(weight=mx.ones(3), bias=None)  # error

Written(3)
Written("a")  # error
Written(3, 4)  # error

Generated(mx.ones(2), Inherited(3, 4))
Generated(mx.ones(2), Written(3), scale=2.0)
Generated(mx.ones(2))  # error
Generated(mx.ones(2), mx.ones(2))  # error
Generated(mx.ones(2), Written(3), "a")  # error
InheritedFromGenerated(mx.ones(2), Written(3), 2.0)
InheritedFromGenerated(mx.ones(2))  # error

fl.nn.Linear(3, 4)
fl.nn.Linear("a", 2)  # error
fl.nn.CELU(2.0)
fl.nn.CELU("a")  # error
fl.nn.Dropout(p=0.1)
fl.nn.Dropout("a")  # error
fl.nn.MaxPool2d((2, 2), padding=1)
fl.nn.MaxPool2d((2, 2, 2))  # error
fl.nn.TransformerEncoder(1, 8, 2, activation=fl.nn.ReLU())
fl.nn.TransformerEncoder(1, 8, 2, activation="relu")  # error

length: int = fl.nn.Conv1d(3, 4, 5).stride
lengths: tuple[int, int] = fl.nn.Conv2d(3, 4, (5, 5)).stride
wrong: int = fl.nn.Conv2d(3, 4, (5, 5)).stride  # error
layer: Inherited = Inherited(3, 4).eval()
"""

FUNCTIONS = """
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from typing_extensions import assert_type

import frostleaf as fl


class Model(fl.Module):
    layer: fl.nn.Linear

    def __init__(self, dims: int) -> None:
        self.layer = fl.nn.Linear(dims, dims)

    @fl.jit
    def __call__(self, x: mx.array) -> mx.array:
        return self.layer(x)

    @fl.jit
    def named(self, x: mx.array, flag: bool = False) -> tuple[mx.array, str]:
        return x, str(flag)

    @fl.jit(max_traces=3)
    def later(self, x: mx.array) -> "Model":
        return self

    @fl.checkpoint
    def again(self, x: mx.array, *, times: int = 1) -> mx.array:
        return x * times

    def loss(self, x: mx.array) -> mx.array:
        return self(x).sum()

    def over(self, xs: mx.array) -> mx.array:
        return fl.vmap(self.loss)(xs)


def loss(model: Model, x: mx.array, *, scale: float = 1.0) -> mx.array:
    return model(x).sum() * scale


def loss_and_more(model: Model, x: mx.array) -> tuple[mx.array, dict[str, int]]:
    return model(x).sum(), {"a": 1}


model, x = Model(2), mx.ones((2,))
model.named(x, flag=True)[0].sum()
assert_type(model(x), mx.array)
assert_type(model.named(x), tuple[mx.array, str])
assert_type(Model.named(model, x), tuple[mx.array, str])
assert_type(model.named.trace_count, int)
assert_type(model.later(x), Model)
assert_type(model.again(x, times=2), mx.array)
assert_type(fl.jit(model.loss)(x), mx.array)
assert_type(fl.jit(loss)(model, x, scale=2.0), mx.array)
model.named("x")  # error
model.named()  # error
model.named(x, 2, 3)  # error
model.again(x, 3)  # error
Model.named(x)  # error
fl.jit(loss)(model, x, rate=2.0)  # error

value, grads = fl.value_and_grad(loss)(model, x, scale=2.0)
assert_type(value, mx.array)
assert_type(grads, Model)
assert_type(fl.value_and_grad(model.loss)(x), tuple[mx.array, mx.array])
assert_type(fl.value_and_grad(fl.jit(loss))(model, x), tuple[mx.array, Model])
assert_type(fl.value_and_grad(loss, argnums=0)(model, x), tuple[mx.array, Model])
assert_type(fl.value_and_grad(loss, argnums=(0, 1))(model, x), tuple[mx.array, Any])
assert_type(fl.value_and_grad(loss, argnames="x")(model, x=x), tuple[mx.array, Any])
assert_type(fl.value_and_grad(loss_and_more, has_aux=True)(model, x), tuple[tuple[mx.array, dict[str, int]], Model])
fl.value_and_grad(loss)(model)  # error
fl.value_and_grad(loss)(model, "x")  # error
fl.value_and_grad(loss)(model, x, rate=1.0)  # error
fl.value_and_grad(loss)(x, x)  # error
assert_type(fl.grad(loss)(model, x), Model)
assert_type(fl.grad(loss_and_more, has_aux=True)(model, x), tuple[Model, dict[str, int]])
assert_type(fl.grad(loss, argnums=1)(model, x), Any)
fl.grad(loss)(model)  # error
wrapped: Callable[[Model, mx.array], tuple[mx.array, Model]] = fl.value_and_grad(loss)

assert_type(fl.vmap(model.loss)(mx.ones((3, 2))), mx.array)
assert_type(fl.vmap(loss, in_axes=(None, 0))(model, mx.ones((3, 2))), mx.array)
assert_type(fl.checkpoint(loss)(model, x, scale=2.0), mx.array)
assert_type(fl.Policy().wrap(loss)(model, x), mx.array)
fl.vmap(loss)(model)  # error
fl.checkpoint(loss)(model)  # error

assert_type(fl.eval_shape(Model, 3), Model)
assert_type(fl.eval_shape(lambda: model), Model)
assert_type(fl.eval_shape(loss, model, fl.ShapeDtypeStruct((2,))), fl.ShapeDtypeStruct)
assert_type(fl.eval_shape(loss_and_more, model, x), tuple[mx.array, dict[str, int]])

opt = fl.optim.Adam(1e-3)
state = opt.init(model)
assert_type(state.step, mx.array)
assert_type(opt.update(model, grads, state)[0], Model)
assert_type(opt.update(model, grads, state)[1].step, mx.array)
assert_type(opt.adapt(state, model).step, mx.array)
assert_type(fl.optim.accumulate(opt, 3).init(model).count, mx.array)
assert_type(fl.optim.shard(opt).init(model).division.shapes, tuple[tuple[int, ...] | None, ...])
assert_type(fl.optim.shard(opt).scatter(state, model).division.ranks, int)
state.steps  # error

assert_type(model.freeze(), Model)
assert_type(model.at("layer").freeze().eval().astype(mx.float16), Model)
assert_type(fl.quantize(Model(64)), Model)
assert_type(fl.fuse(fl.lora(model, "layer", rank=2)), Model)
loaded: Callable[[], Model] = lambda: fl.load_adapters(model, "adapters")


def read(flag: bool) -> None:
    assert_type(fl.load("run", model), Model)
    assert_type(fl.load("run", model, where=["layer.**", fl.nn.Linear], strict=True), Model)
    assert_type(fl.load("run", model, strict=False), tuple[Model, fl.LoadReport])
    assert_type(fl.load("run", model, strict=False)[1].taken, tuple[str, ...])
    assert_type(fl.load("run", model, strict=flag), Model | tuple[Model, fl.LoadReport])
    checkpoints = fl.Checkpointer("run")
    assert_type(checkpoints.restore(model), tuple[int, Model])
    assert_type(checkpoints.restore(model, 3, where="layer.**"), tuple[int, Model])
    assert_type(checkpoints.restore(model, strict=False), tuple[int, Model, fl.LoadReport])
    assert_type(checkpoints.restore(model, strict=flag), tuple[int, Model] | tuple[int, Model, fl.LoadReport])
    assert_type(checkpoints.restore(model, rename={"a": "b", "c": None}), tuple[int, Model])
    assert_type(checkpoints.restore(model, strict=False, rename=str.lower), tuple[int, Model, fl.LoadReport])
    checkpoints.restore(model, rename=3)  # error
    assert_type(checkpoints.info()[0].own, int)
    assert_type(checkpoints.diff(1, 2)[0].path, str)
    fl.load("run", model, "layer.**")  # error
    fl.load("run", model, where=3)  # error


assert_type(model["layer"], Any)
assert_type("layer" in model, bool)
model["layer"] = fl.nn.Linear(2, 2)  # error
list(model)  # error
model.freeze(key="bias")  # error
"""

FIELDS = """
from collections.abc import Mapping, Sequence

import mlx.core as mx
from typing_extensions import assert_type

import frostleaf as fl


class Written(fl.Module):
    layers: Sequence[fl.nn.Linear]
    table: Mapping[str, mx.array]
    exact: tuple[fl.nn.Linear, ...]

    def __init__(self) -> None:
        self.layers = [fl.nn.Linear(1, 2)]
        self.table = {"a": mx.ones(2)}
        self.exact = tuple([fl.nn.Linear(1, 2)])


class List(fl.Module):
    exact: tuple[fl.nn.Linear, ...]

    def __init__(self) -> None:
        self.exact = ()
        self.exact = [fl.nn.Linear(1, 2)]  # error


class Converted(fl.Module):
    weight: mx.array = fl.parameter(alias="w")
    layers: tuple[fl.nn.Linear, ...] = fl.parameter(converter=tuple)
    size: int = fl.static(converter=int, default=3)


assert_type(Written().layers[0], fl.nn.Linear)
assert_type(Written().table["a"], mx.array)
assert_type(Converted(w=mx.ones(2), layers=(fl.nn.Linear(2, 2),)).layers[0], fl.nn.Linear)
Converted(mx.ones(2), [fl.nn.Linear(2, 2)])  # error: mypy
Converted(mx.ones(2), (), "3")  # error: mypy
Converted(weight=mx.ones(2), layers=())  # error
Converted(mx.ones(2), 3)  # error
"""

# What a package imports when it is first used is known to checkers, and no name beside it.
NAMES = """
import frostleaf as fl
from frostleaf import jit, load, nn, optim, save
from frostleaf.nn import Linear
from frostleaf.optim import AdamW

print(jit, load, nn.Linear, optim.AdamW, save, Linear, AdamW, fl.nn.Transformer)
print(fl.Linear)  # error
print(fl.nn.AdamW)  # error
print(fl.optim.jit)  # error
"""

# A strict pyright forbids lambdas whose arguments it doesn't know.
LAMBDAS = """
# pyright: standard
import mlx.core as mx
from typing_extensions import assert_type

import frostleaf as fl

model, x = fl.nn.Linear(2, 2), mx.ones((2,))
value, grads = fl.value_and_grad(lambda layer: layer(x).sum())(model)
fl.value_and_grad(lambda layer, x: layer(x).sum())(model, x)
fl.value_and_grad(lambda layer, x: (layer(x).sum(), 3), has_aux=True)(model, x)
fl.value_and_grad(lambda layer, x: layer(x).sum(), argnums=(0, 1))(model, x)
fl.value_and_grad(lambda layer, x: layer(x).sum(), argnames="x")(model, x=x)
fl.grad(lambda layer, x: layer(x).sum())(model, x)
fl.grad(lambda layer, x: (layer(x).sum(), 3), has_aux=True)(model, x)
fl.vmap(lambda layer, x: layer(x), in_axes=(None, 0))(model, mx.ones((3, 2)))
fl.jit(lambda layer, x: layer(x))(model, x)
fl.checkpoint(lambda layer, x: layer(x))(model, x)
fl.eval_shape(lambda layer, x: layer(x), model, x)
"""


def call(layer, **options):
    """Return a call of a layer as source."""
    return f"fl.nn.{layer.__name__}({', '.join(f'{name}={value}' for name, value in options.items())})"


def calls(layer):
    """Return calls of a layer with all its arguments, with one more, with the required ones alone, and without these."""
    parameters = inspect.signature(layer).parameters.values()
    named = {each.name: "anything" for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    required = {each.name: "anything" for each in parameters if each.name in named and each.default is each.empty}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    yield call(layer, **named)
    yield call(layer, **named, unknown="anything") + ("" if takes_any else "  # error")
    yield call(layer, **required)
    yield call(layer, **{name: value for name, value in named.items() if name not in required}) + "  # error" * bool(required)


def of_each_layer():
    head = ["from typing import Any", "", "import frostleaf as fl", "", "anything: Any = None"]
    return "\n".join([*head, *(line for layer in LAYERS for line in calls(layer))]) + "\n"


# What is checked, in one run of each checker, since it is the library that takes them long: the code of a user, and whether
# each layer takes what its signature says.
CODE = {"user.py": USER, "functions.py": FUNCTIONS, "fields.py": FIELDS, "names.py": NAMES, "lambdas.py": LAMBDAS}
FILES = {**CODE, "each_layer.py": of_each_layer()}


def expected(*marks):
    return {
        (name, number)
        for name, source in FILES.items()
        for number, line in enumerate(source.splitlines(), 1)
        if line.endswith(marks)
    }


@pytest.fixture
def folder(tmp_path):
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
    return tmp_path


def test_mypy_accepts_the_library_and_finds_the_errors_of_its_users(folder):
    files = [str(folder / name) for name in FILES]
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--show-absolute-path", str(ROOT / "src"), *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # with the options in pyproject.toml
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(.+?):(\d+):(?:\d+:)? error", done.stdout, re.M)
    assert {Path(file) for file, _ in found} <= {folder / name for name in FILES}, done.stdout
    assert {(Path(file).name, int(line)) for file, line in found} == expected("# error", "# error: mypy"), done.stdout


def test_pyright_finds_the_errors_of_users(folder):
    config = {"typeCheckingMode": "strict", "include": list(FILES), "extraPaths": [str(ROOT / "src")]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors = [each for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    assert {(Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in errors} == expected("# error"), (
        done.stdout
    )


@pytest.mark.parametrize("source", CODE.values(), ids=CODE)
def test_the_lines_without_an_error_run(source):
    lines = [line for line in source.splitlines() if not line.endswith("# error")]
    exec(compile("\n".join(lines), "user.py", "exec"), {"__name__": "user"})
