"""A call for a changed copy whose result is dropped says so, and no other call does."""

import shutil
import subprocess
import textwrap
import threading
import timeit
import warnings
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import pytest

import frostleaf as fl
from frostleaf.core import dropped

# Each is a statement, run in a module and in a function.
DROPPED = [
    "m.freeze()",
    "m.eval()",
    "m.train(False)",
    "m.freeze().eval()",
    "m.unfreeze(keys='bias').astype(mx.float16)",
    "m.astype(mx.float16, *())",
    "m.astype(*[mx.float16], **{})",
    "m.set_dtype(dtype=mx.float16)",
    "m.set_dtype(mx.float16 if m else mx.float32)\nm.eval()",
    "m.update({'bias': mx.ones(2)})",
    "m.replace(bias=m.weight[0])",
    "m.apply(mx.zeros_like)",
    "m.apply(lambda a: a * 2)",
    "m.load_weights([('bias', mx.ones(2))], strict=False)",
    "m.with_frozen('bias')",
    "m.map_modules(lambda path, module: fl.nn.Identity())",
    "m.at('bias').set(None)",
    "m.at('bias').apply(mx.exp)",
    "m.at('bias').freeze()",
    "m.at(\n    'bias'\n).astype(\n    mx.float16\n)",
    "[m][0].eval()",
    "{'k': m}['k'].freeze(recurse=True)",
    "fl.Module.eval(m)",
    "fl.quantize(fl.nn.Linear(64, 64))",
    "fl.quantize(model=fl.nn.Linear(64, 64))",
    "fl.lora(m, fl.nn.Linear)",
    "fl.fuse(fl.lora(m, fl.nn.Linear))",
    "fl.nn.QQLinear(32, 32).quantize()",
    "for each in [m]: each.eval()",
    "if m: m.eval()",
    "opt.update(m, grads, opt.init(m))",
    "opt.with_learning_rate(opt.init(m), 0.2)",
    "opt.adapt(opt.init(m.freeze(keys='bias')), m)",
    "fl.optim.clip_grad_norm(grads, 1.0)",
    "fl.optim.apply_updates(m, grads)",
    "fl.nn.Linear(64, 64).to_quantized()",
    "fl.nn.Embedding(64, 64).to_quantized(group_size=32)",
    "class Sub(fl.nn.Linear, init=False):\n    def all(self):\n        super().freeze()\nSub(2, 2).all()",
    "class Own(fl.Module):\n    child: fl.nn.Linear\n"
    "    def __init__(self):\n        self.child = m\n        self.child.freeze()\nOwn()",
]
USED = [
    "x = m.freeze()",
    "x = y = m.eval()",
    "x, y = m.eval(), m.freeze()",
    "m.eval()(mx.ones(2))",
    "print(m.eval(), end='')",
    "x = [m.eval() for _ in range(2)]",
    "[m.eval() for _ in range(2)]",
    "{m.eval() for _ in range(2)}",
    "{1: m.eval()}",
    "(lambda: m.eval())()",
    "[].append(m.eval())",
    "[].extend(each.eval() for each in [m])",
    "[].extend(map(fl.Module.eval, [m]))",
    "[].extend(map(__import__('operator').methodcaller('eval'), [m]))",
    "list(map(fl.Module.freeze, [m]))",
    "[m].sort(key=lambda each: id(each.eval()))",
    "{}.update(k=m.update({'bias': mx.ones(2)}))",
    "assert m.eval()",
    "if m.eval(): pass",
    "m.eval() is m",
    "(m.eval(),)",
    "f'{m.eval()}'",
    "def f():\n    return m.eval()\nf()",
    "def f():\n    with fl.disable_jit():\n        return m.eval()\nf()",
    "def f():\n    try:\n        return m.eval()\n    finally:\n        print(end='')\nf()",
    "def f():\n    for _ in range(2):\n        return m.eval()\nf()",
    "def f():\n    yield m.eval()\nlist(f())",
    "thread = threading.Thread(target=m.eval)\nthread.start()\nthread.join()",
    "fl.jit(fl.Module.freeze)(m)",
    "__import__('timeit').timeit('m.freeze()', number=1, globals={'m': m})",
    "fl.tree.map(fl.nn.relu, m.eval())",
    "class Own(fl.Module):\n    def __init__(self):\n        self.a = m\n        self.freeze()\n    a: fl.Module\nOwn()",
    "state = opt.adapt(opt.init(m), m)",
    "clipped, norm = fl.optim.clip_grad_norm(grads, 1.0)",
    "_, norm = fl.optim.clip_grad_norm(grads, 1.0)",
    "norm = fl.optim.clip_grad_norm(grads, 1.0)[1]",
    "fl.stateful(m, mx.ones(2))",
    "out, _ = fl.stateful(m, mx.ones(2))",
    "fl.stateful(m, mx.ones(2))[0]",
    "fl.eval(fl.optim.apply_updates(m, grads))",
    "fl.quantize(fl.nn.Sequential(fl.nn.Linear(64, 64)))(mx.ones(64))",
    # They return the module itself, so nothing is lost.
    "m.train()",
    "m.unfreeze()",
    "m.astype(mx.float32)",
    "m.update({})",
    "fl.quantize(fl.nn.Identity())",
    "fl.fuse(m)",
    "fl.quantize(model=fl.nn.Identity())",
]


def warned(source, mode="exec", file="user.py"):
    names = {name: globals()[name] for name in ("fl", "mx", "threading")}
    m, opt = fl.nn.Linear(2, 2), fl.optim.SGD(0.1)
    names |= {"m": m, "opt": opt, "grads": fl.tree.map(mx.ones_like, m), "__name__": "user"}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        exec(compile(source, file, mode), names)
    return [each for each in found if each.category is fl.DroppedResultWarning]


def in_a_function(source):
    return f"def body():\n{textwrap.indent(source, '    ')}\nbody()"


@pytest.mark.parametrize("source", DROPPED)
def test_a_dropped_copy_warns_at_its_line(source):
    [found] = warned(source)
    assert (found.filename, found.lineno in range(1, source.count("\n") + 2)) == ("user.py", True)
    assert "changes nothing in place" in str(found.message)
    assert " = " in str(found.message)
    assert len(str(found.message)) < 200
    assert len(warned(in_a_function(source))) == 1


@pytest.mark.parametrize("source", USED)
def test_what_is_used_or_unchanged_is_silent(source):
    assert warned(source) == []
    assert warned(in_a_function(source)) == []


@pytest.mark.parametrize("source", ["m.eval()", "m.at('bias').set(None)", "m.freeze().eval()"])
def test_the_last_line_of_a_notebook_cell_is_shown_and_so_is_silent(source, capsys):
    assert warned(source, "single") == []
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "source", ["m.freeze()", "m.eval()\nm.astype(mx.float16)", "for _ in range(2): opt.adapt(opt.init(m), m)"]
)
def test_what_is_timed_may_be_dropped(source):
    assert warned(source, file="<timed exec>") == warned(source, file="<magic-timeit>") == []
    assert warned(source) != []


def test_the_message_says_what_to_write():
    assert str(warned("m.freeze()")[0].message) == (
        "Module.freeze changes nothing in place: it returns a changed copy, which this statement drops. "
        "Write model = model.freeze(...)."
    )
    assert "model = model.at(...).set(...)" in str(warned("m.at('bias').set(None)")[0].message)
    assert "model, state = opt.update(model, grads, state)" in str(warned("opt.update(m, grads, opt.init(m))")[0].message)


def test_once_for_each_place():
    source = "for _ in range(3):\n    m.freeze()\n    m.freeze()"
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        exec(compile(source, "user.py", "exec"), {"m": fl.nn.Linear(2, 2), "__name__": "user"})
    assert [each.lineno for each in found] == [2, 3]


def test_a_method_keeps_its_name_signature_and_docstring():
    assert fl.Module.freeze.__qualname__ == "Module.freeze"
    assert fl.Module.freeze.__doc__ == fl.Module.freeze.__wrapped__.__doc__
    assert fl.Module.freeze.__wrapped__.__code__.co_filename.endswith("module.py")


def test_a_call_from_a_thread_that_python_did_not_begin():
    begun = threading.Event()

    class Layer(fl.Module):
        def _set_training_mode(self, mode):
            begun.set()
            return super()._set_training_mode(mode)

    threading._start_joinable_thread(Layer().eval) if hasattr(threading, "_start_joinable_thread") else (
        threading._start_new_thread(Layer().eval, ())
    )
    assert begun.wait(10)


PLAIN = """
import importlib.util, sys, warnings

spec = importlib.util.spec_from_file_location("dropped", sys.argv[1])
dropped = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dropped)


class Model:
    @dropped.returns_copy()
    def eval(self, *args, **kwargs):
        return Model()


m, args, kwargs, found = Model(), (1,), {"k": 1}, []
warnings.simplefilter("always")
warnings.showwarning = lambda message, category, filename, lineno, *_: found.append(lineno)
for function in (lambda: m.eval(), lambda: [m.eval()], lambda: list(map(Model.eval, [m]))):
    x = function()
[].extend(map(Model.eval, [m]))
x = m.eval(1, k=2)
x = [m.eval(*args) for _ in range(2)]
assert found == [], found
m.eval()
m.eval(1, m.eval(2))
m.eval(k=m.eval)
m.eval(*args)
m.eval(*args, **kwargs)
Model.eval(m, 2)
assert len(found) == 6, found
"""


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_in_each_python_that_is_here(version, tmp_path):
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"no Python {version} here")
    file = tmp_path / "plain.py"
    file.write_text(PLAIN)
    done = subprocess.run([python, file, Path(dropped.__file__)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_costs_little_when_the_result_is_used():
    def identity(value):
        return value

    noticing = dropped.returns_copy()(identity)
    costs = [min(timeit.repeat(lambda f=f: f(3), number=2000, repeat=50)) / 2000 for f in (noticing, identity)]
    assert costs[0] - costs[1] < 1e-6


def loss(model, x):
    return model(x).sum()


LAYER, BIG, X = fl.nn.Linear(2, 1), fl.nn.Linear(64, 64), mx.ones((3, 2))
GRADS = {"weight": mx.ones((1, 2)), "bias": mx.ones(1)}
BY_MLX = {
    "value_and_grad": (lambda: nn.value_and_grad(LAYER, loss)(LAYER, X), "fl.value_and_grad(fn)(model, ...)"),
    "value_and_grad with nothing to train": (
        lambda: nn.value_and_grad(LAYER.freeze(), lambda x: loss(LAYER, x))(X),
        "fl.value_and_grad(fn)(model, ...)",
    ),
    "value_and_grad of a wrapped model with nothing to train": (
        lambda: nn.value_and_grad(fl.from_mlx(nn.Linear(2, 1).freeze()), lambda x: loss(LAYER, x))(X),
        "fl.value_and_grad(fn)(model, ...)",
    ),
    "checkpoint": (lambda: nn.utils.checkpoint(LAYER)(X), "fl.checkpoint(model)"),
    "checkpoint with nothing to train": (lambda: nn.utils.checkpoint(LAYER.freeze())(X), "fl.checkpoint(model)"),
    "quantize": (lambda: nn.quantize(BIG), "model = fl.quantize(model, ...)"),
    "quantize what is inside": (lambda: nn.quantize(fl.nn.Sequential(BIG)), "model = fl.quantize(model, ...)"),
    "quantize with nothing to do": (lambda: nn.quantize(fl.nn.ReLU()), "fl.quantize"),
    "SGD": (lambda: mlx.optimizers.SGD(0.1).update(LAYER, GRADS), "opt.update(model, grads, state)"),
    "Adam": (lambda: mlx.optimizers.Adam(0.1).update(LAYER, GRADS), "fl.optim"),
    "MultiOptimizer": (
        lambda: mlx.optimizers.MultiOptimizer([mlx.optimizers.Adam(0.1)], []).update(LAYER, GRADS),
        "opt.update(model, grads, state)",
    ),
    "shard_inplace": (lambda: nn.layers.distributed.shard_inplace(LAYER, "all-to-sharded"), "model.update(...)"),
}


@pytest.mark.parametrize("name", BY_MLX)
def test_a_function_of_mlx_that_changes_models_in_place_is_refused(name):
    call, instead = BY_MLX[name]
    with pytest.raises(TypeError, match="frostleaf's models never change") as raised:
        call()
    assert instead in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_function_of_mlx_that_uses_what_it_is_given_works():
    assert [each.training for each in mlx.utils.tree_map(fl.Module.eval, [LAYER, LAYER])] == [False, False]
    assert mlx.utils.tree_map(lambda array: array.astype(mx.float16), LAYER).weight.dtype == mx.float16
    assert nn.average_gradients(LAYER) is LAYER


@pytest.mark.parametrize("call", [
    lambda: mlx.optimizers.Adam(0.1).apply_gradients(LAYER, LAYER), lambda: mlx.optimizers.clip_grad_norm(LAYER, 1.0),
    lambda: mlx.optimizers.clip_grad_norm({"a": LAYER}, 1.0),
])  # fmt: skip
def test_a_module_that_mlx_takes_for_an_array_says_what_to_write(call):
    with pytest.raises(AttributeError, match=r"takes this Linear for an array, and asks for its \w+.*fl\.optim"):
        call()


def test_a_method_of_mlx_that_goes_by_another_name_says_so():
    assert not hasattr(LAYER, "apply_to_modules")
    with pytest.raises(AttributeError, match=r"no attribute 'apply_to_modules': write model = model\.map_modules\(fn\)"):
        LAYER.apply_to_modules(print)


@pytest.mark.parametrize(
    ("name", "said"),
    [(name, r"model\.astype\(") for name in ("to", "half", "float", "cuda")]
    + [("state_dict", r"model\.parameters\(\)"), ("load_state_dict", "load_weights"), ("named_parameters", r"fl\.tree\.paths")]
    + [("register_buffer", r"fl\.buffer\(\)"), ("zero_grad", r"fl\.value_and_grad")],
)
def test_what_a_module_of_pytorch_has_says_what_to_write(name, said):
    assert not hasattr(LAYER, name)
    with pytest.raises(AttributeError, match=f"^Linear has no attribute '{name}': .*{said}"):
        getattr(LAYER, name)


def test_an_attribute_that_a_module_lacks_is_missing_as_ever():
    for name in ("dtype", "nothing"):
        assert not hasattr(LAYER, name)
        with pytest.raises(AttributeError, match=f"^'Linear' object has no attribute '{name}'$"):
            getattr(LAYER, name)


@pytest.mark.parametrize("name", ["freeze", "unfreeze"])
@pytest.mark.parametrize("given", ["bias", ["bias"], False])
def test_what_is_to_be_frozen_is_given_by_name(name, given):
    message = rf"Module\.{name} takes no positional argument, .* a {type(given).__name__}: write {name}\(keys=\.\.\.\)"
    with pytest.raises(TypeError, match=message):
        getattr(LAYER, name)(given)
    with pytest.raises(TypeError, match=message):
        getattr(fl.Module, name)(LAYER, given)
    assert LAYER.freeze(keys="bias").unfreeze(keys="bias", recurse=False) is not None
