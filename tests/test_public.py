"""The names that are public: what is listed, how they are documented, and what their signatures show."""

import doctest
import inspect
import re
import types

import mlx.core as mx
import pytest

import frostleaf as fl

NAMESPACES = {
    "fl": fl, "fl.distributed": fl.distributed, "fl.nn": fl.nn, "fl.optim": fl.optim, "fl.plot": fl.plot, "fl.tree": fl.tree
}  # fmt: skip
PUBLIC = {f"{prefix}.{name}": getattr(space, name) for prefix, space in NAMESPACES.items() for name in space.__all__}
OURS = {
    name: value
    for name, value in PUBLIC.items()
    if not isinstance(value, types.ModuleType) and value.__module__.startswith("frostleaf.")
}
METHODS = {
    f"fl.{cls.__name__}.{name}": getattr(cls, name)
    for cls in (fl.Module, fl.Selection, fl.Jitted)
    for name in dir(cls)
    if not name.startswith("_") and callable(getattr(cls, name))
}
# A first sentence that begins so hides what the function does.
ROUNDABOUT = ("Return nothing", "Return a context", "Return a function that")


def shown_in_signatures(value: object) -> list[str]:
    """Return the signatures of a value and, if it is a class, of its public methods."""
    found = [value]
    if isinstance(value, type):
        found += [getattr(value, name) for name in dir(value) if not name.startswith("_")]
    shown = []
    for each in filter(callable, found):
        try:
            shown.append(str(inspect.signature(each)))
        except ValueError:  # MLX's functions have no signature
            continue
    return shown


@pytest.mark.parametrize("prefix", NAMESPACES)
def test_dir_lists_the_public_names(prefix):
    space = NAMESPACES[prefix]
    assert dir(space) == sorted(space.__all__)
    assert len(set(space.__all__)) == len(space.__all__)


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_no_signature_prints_a_memory_address(name):
    shown = shown_in_signatures({**PUBLIC, **METHODS}[name])
    assert not [signature for signature in shown if " at 0x" in signature]


@pytest.mark.parametrize("name", OURS)
def test_a_public_name_has_a_docstring_with_an_example(name):
    text = inspect.getdoc(OURS[name])
    assert text
    assert OURS[name].__doc__, "the docstring is that of a base class"
    assert doctest.DocTestParser().get_examples(text), "the docstring has no example"


@pytest.mark.parametrize("name", METHODS)
def test_a_public_method_has_a_docstring(name):
    assert inspect.getdoc(METHODS[name])


@pytest.mark.parametrize("name", [*OURS, *METHODS])
def test_a_docstring_begins_with_what_is_done(name):
    text = inspect.getdoc({**OURS, **METHODS}[name])
    assert text is not None
    assert not text.startswith(ROUNDABOUT)
    assert text.split("\n\n")[0].rstrip().endswith("."), "the first paragraph is no sentence"


def test_nothing_prints_a_memory_address():
    class Net(fl.Module):
        layer: fl.nn.Linear
        act: object = fl.static(default=fl.nn.relu)

    model = Net(fl.nn.Linear(2, 2))
    sgd = fl.optim.SGD(0.1)

    def double(x):
        return x + x

    values = [
        model,
        model.at("**"),
        model.parameters(),
        model.children(),
        model.named_modules(),
        fl.jit(double),
        fl.jit(model.layer),
        fl.vmap(double),
        fl.checkpoint(model.layer),
        fl.Policy(),
        fl.Policy().wrap(double),
        fl.eval_shape(double, mx.zeros(2)),
        fl.tree.structure(model),
        fl.tree.structure({"a": double, "b": object()}),
        fl.tree.diff(model, model.replace(act=double)),
        fl.tree.diff(model, model.replace(act=double))[0],
        sgd,
        sgd.init(model),
        fl.optim.pack(model),
        fl.optim.flatten(sgd).init(model),
        fl.optim.multi({"**": sgd}),
        fl.optim.masked(sgd, lambda path, array: True),
        fl.optim.chain(double, sgd),
        fl.optim.shard(sgd),
        fl.optim.shard(sgd).init(model),
    ]
    assert not [text for text in map(repr, values) if " at 0x" in text]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("save_weights", "model.save_weights(file)"), ("load_weights", "model = model.load_weights(file)"),
        ("savez", "fl.save(file, tree)"), ("linear_to_lora_layers", "fl.lora(model, where, ...)"),
        ("freeze", "model = model.freeze(...)"), ("tree_unflatten", "fl.tree.unflatten(structure, leaves)"),
    ],
)  # fmt: skip
def test_functions_of_mlx_and_mlx_lm_say_what_to_write(name, write):
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}'. Write .*{re.escape(write)}"):
        getattr(fl, name)
