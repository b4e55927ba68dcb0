"""A module of ``mlx.nn`` as a tree: its names, its numbers, and everything that a native tree can do."""

import copy
import dataclasses
import gc
import pickle
import threading
import weakref

import attrs
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from interop.checks import arrays, close, same
from interop.models import Args, Counter, Model, Shared
from mlx.utils import tree_flatten

import frostleaf as fl
from frostleaf.interop import calls
from frostleaf.interop.live import Live

X = mx.array([[1, 2, 3]])


def build():
    mx.random.seed(0)
    return Model()


def names(module):
    return [name for name, value in tree_flatten(module.state) if isinstance(value, mx.array)]


def loss(model, x):
    return model(x).square().sum()


def test_paths_and_parameters_are_those_of_the_module():
    model = build()
    tree = fl.from_mlx(model)
    assert fl.tree.paths(tree) == names(model)
    assert [*arrays(tree)] == [*arrays(model)]
    assert same(arrays(tree), arrays(model))
    assert {*dict(tree_flatten(tree.trainable_parameters()))} == {*dict(tree_flatten(model.trainable_parameters()))}
    assert "embed.weight" not in dict(tree_flatten(tree.trainable_parameters()))
    assert "rope._freqs" not in arrays(tree)
    assert [block.training for block in tree.blocks] == [True, False]


def test_it_is_called_like_the_module():
    model = build()
    tree = fl.from_mlx(model)
    for _ in range(2):
        assert same(tree(X), model(X))
        assert same(tree(X, twice=True), model(X, twice=True))
    assert same(tree.project(mx.ones(4)), model.project(mx.ones(4)))
    assert same(tree.head(mx.ones(4)), model.head(mx.ones(4)))
    assert same(tree.blocks[0](mx.ones(4)), model.blocks[0](mx.ones(4)))
    assert same(list(tree.tokens(X)), list(model.tokens(X)))


def test_attributes_are_there():
    model = build()
    tree = fl.from_mlx(model)
    assert (tree.width, tree.name, tree.sizes, tree.shape, tree.missing) == (4, "tiny", [1, 2, 3], (2, 3), None)
    assert tree.args == model.args
    assert tree.activation is nn.silu
    assert tree.double(3) == 6
    assert type(tree.build()) is Model
    assert [*map(id, tree.layers)] == [*map(id, tree.blocks)]
    assert [type(block).__name__ for block in tree.layers] == ["Block", "Block"]
    assert tree.heads["extra.one"][0].weight.shape == (2, 4)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tree.nothing


def test_the_source_and_the_tree_do_not_see_what_is_done_to_the_other():
    model = build()
    tree = fl.from_mlx(model)
    expected = tree(X)
    model.blocks[0].up.weight += 1
    model.pair[0][0] = 100
    model.blocks.append(None)
    model.args.dims = 0
    model.args.scaling["factors"].append(3.0)
    model.sizes.append(1)
    model.heads["main"] = None
    model.name = "other"
    assert same(tree(X), expected)
    assert tree.args.dims == 4
    assert tree.args.scaling["factors"] == [1.0, 2.0]
    model = build()
    tree = fl.from_mlx(model)
    expected = model(X)
    tree.args.dims = 0
    tree.sizes.append(2)
    tree.layers.clear()
    weight = tree.blocks[0].up.weight
    weight += 1
    assert same(model(X), expected)
    assert tree.args.dims == 4


def test_two_trees_of_equal_modules_have_one_structure():
    one, other = fl.from_mlx(build()), fl.from_mlx(build())
    assert fl.tree.structure(one) == fl.tree.structure(other)
    assert hash(fl.tree.structure(one)) == hash(fl.tree.structure(other))
    assert fl.tree.structure(one) != fl.tree.structure(fl.from_mlx(Model(Args(scaling={"type": "linear"}))))


def test_nothing_is_assigned():
    tree = fl.from_mlx(build())
    with pytest.raises(attrs.exceptions.FrozenInstanceError, match=r"can't set Model.name: .*replace\(name=...\)"):
        tree.name = "other"
    with pytest.raises(attrs.exceptions.FrozenInstanceError, match=r"can't set Linear\.weight"):
        tree.blocks[0].up.weight = mx.ones(1)
    assert tree.replace(name="other").name == "other"
    assert tree.replace(sizes=[1]).sizes == [1]


def test_edits():
    model = build()
    tree = fl.from_mlx(model)
    half = tree.at("blocks.*.norm.**").astype(mx.float16)
    assert half.blocks[0].norm.weight.dtype == mx.float16
    assert half.blocks[0].up is tree.blocks[0].up
    assert tree.at(nn.Linear).paths()[:2] == ["blocks.0.up", "blocks.0.down"]
    scaled = tree.at("blocks.*.scale").set(0.25)
    for block in model.blocks:
        block.scale = 0.25
    assert same(scaled(X), model(X))
    assert not same(tree(X), model(X))
    assert tree.at("blocks.1.scale").set(0.5) is tree
    assert tree.astype(mx.float16).rope._freqs.dtype == mx.float32
    assert tree.freeze().trainable_parameters()["blocks"][0]["up"] == {}
    assert not tree.eval().blocks[0].training
    assert tree.blocks[0].training
    changed = tree.map_modules(lambda path, module: module.replace(name="x") if path == "" else None)
    assert changed.name == "x"
    assert [change.path for change in fl.tree.diff(tree, tree.at("pair.0").set(mx.zeros(4)))] == ["pair.0"]


def test_lists_and_helpers_are_edited_too():
    tree = fl.from_mlx(build())
    assert tree.at("sizes").get() == [1, 2, 3]
    assert dict(tree.at(["sizes", "name"])) == {"sizes": [1, 2, 3], "name": "tiny"}
    assert tree.at("sizes").apply(lambda sizes: [*sizes, 4]).sizes == [1, 2, 3, 4]
    assert tree.at("sizes").set([1, 2, 3]) is tree
    assert tree.at("args").apply(lambda args: dataclasses.replace(args, dims=5)).width == 5
    assert [change.path for change in fl.tree.diff(tree, tree.replace(args=Args(5)))] == ["args"]
    assert "Args(dims=5" in str(fl.tree.diff(tree, tree.replace(args=Args(5))))


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: model.freeze(),
        lambda model: model.unfreeze(),
        lambda model: model.eval(),
        lambda model: model.freeze(keys="bias"),
        lambda model: model.train(),
    ],
)
def test_modes_and_frozen_names_are_those_of_the_module(edit):
    model = build()
    tree = edit(fl.from_mlx(model))
    edit(model)
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(model))


def test_gradients_and_steps_are_those_of_mlx():
    model = build()
    tree = fl.from_mlx(model)
    opt, theirs = fl.optim.AdamW(1e-2), optim.AdamW(1e-2)
    state = opt.init(tree)
    for _ in range(3):
        value, grads = nn.value_and_grad(model, loss)(model, X)
        theirs.update(model, grads)
        ours, tree_grads = fl.value_and_grad(loss)(tree, X)
        assert same(ours, value)
        tree, state = opt.update(tree, tree_grads, state)
        assert same(arrays(tree), arrays(model))


def test_a_jitted_step():
    tree = fl.from_mlx(build())
    opt = fl.optim.SGD(1e-2)

    @fl.jit
    def step(tree, state, x):
        value, grads = fl.value_and_grad(loss)(tree, x)
        return value, *opt.update(tree, grads, state)

    state = opt.init(tree)
    with fl.disable_jit():
        _, plain, _ = step(tree, state, X)
    for _ in range(3):
        _, after, state = step(tree, state, X)
    assert step.trace_count == 1
    _, after, _ = step(tree, opt.init(tree), X)
    assert close(after, plain)
    assert same(fl.jit(fl.from_mlx(build()))(X), fl.jit(tree)(X))
    assert close(fl.jit(tree.project)(mx.ones(4)), tree.project(mx.ones(4)))


def test_files(tmp_path):
    model = build()
    tree = fl.from_mlx(model)
    fl.save(tmp_path / "tree", tree)
    assert fl.tree.equal(fl.load(tmp_path / "tree", like=fl.from_mlx(Model())), tree)
    with pytest.raises(fl.OtherStructureError, match="args"):
        fl.load(tmp_path / "tree", like=fl.from_mlx(Model(Args(scaling={"type": "linear"}))))
    with pytest.raises(
        fl.OtherStructureError, match=r"args \(static\): .*\[1\.0, 2\.0\].* in the file, .*\[1\.0, True\].* in like"
    ):
        fl.load(tmp_path / "tree", like=fl.from_mlx(Model(Args(scaling={"type": "none", "factors": [1.0, True]}))))
    tree.save_weights(tmp_path / "w.npz")
    other = fl.from_mlx(Model()).load_weights(tmp_path / "w.npz")
    assert same(other(X), tree(X))
    layer = nn.Linear(2, 3)
    layer.save_weights(str(tmp_path / "l.safetensors"))
    assert same(fl.from_mlx(nn.Linear(2, 3)).load_weights(tmp_path / "l.safetensors"), fl.from_mlx(layer))


def test_copies():
    tree = fl.from_mlx(build())
    assert copy.copy(tree) is tree
    assert fl.tree.equal(copy.deepcopy(tree), tree)
    again = pickle.loads(pickle.dumps(tree))
    assert type(again) is type(tree)
    assert fl.tree.structure(again) == fl.tree.structure(tree)
    assert same(again(X), tree(X))
    assert pickle.loads(pickle.dumps(fl.tree.structure(tree))) == fl.tree.structure(tree)


def test_repr_and_dir():
    tree = fl.from_mlx(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert repr(tree) == "Sequential(layers=(Linear(weight=f32[3,2], bias=f32[3]), ReLU()))"
    assert repr(tree.at("layers.0").freeze()).count("❄") == 2
    assert "layers" in dir(tree)


@pytest.mark.filterwarnings("ignore:Counter.__call__ changed memo, calls, seen:frostleaf.UncollectedStateWarning")
def test_a_call_changes_nothing():
    model = Counter()
    tree = fl.from_mlx(model)
    x = mx.array([1.0, 2.0, 3.0])
    expected = tree(x)
    structure = fl.tree.structure(tree)
    assert same(tree(x), expected)
    assert fl.tree.structure(tree) is structure
    assert (tree.calls, tree.seen, tree.count.item()) == (0, [], 0.0)
    assert same(fl.from_mlx(model)(x), expected)
    value, _ = fl.value_and_grad(lambda tree, x: tree(x).sum())(tree, x)
    assert same(value, expected.sum())
    assert same(tree(x), expected)
    assert close(fl.jit(tree)(x), expected)
    assert same(tree(x), expected)


def test_stateful_returns_what_a_call_changed():
    model = Counter()
    tree = fl.from_mlx(model)
    for number in range(1, 4):
        x = mx.array([1.0, 2.0, 3.0]) * number
        expected = model(x)
        out, tree = fl.stateful(tree, x)
        assert same(out, expected)
        assert (tree.count.item(), tree.table.tolist(), tree.calls) == (model.count.item(), model.table.tolist(), number)
        assert tree.seen == model.seen
        assert same(tree.memo["x"], x)
    out, after = fl.stateful(tree, x)
    assert after.weight is tree.weight
    assert after.inner is tree.inner


COLLECT = r"Sequential.__call__ changed layers.1.running_mean, layers.1.running_var, and .* Write fl.stateful\(model, ...\)"


def test_batch_norm_learns_only_in_stateful():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm(3))
    tree = fl.from_mlx(model)
    x = mx.random.normal((4, 2))
    with pytest.warns(fl.UncollectedStateWarning, match=COLLECT):
        tree(x)
    out, after = fl.stateful(tree, x)
    assert same(out, model(x))
    assert fl.tree.equal(after, fl.from_mlx(model))
    assert after.layers[0] is tree.layers[0]
    _, twice = fl.stateful(lambda tree, x: (tree(x), tree(x)), tree, x)
    model(x)
    assert fl.tree.equal(twice, fl.from_mlx(model))
    assert fl.tree.structure(tree.layers[1].unfreeze()) == fl.tree.structure(tree.layers[1])
    jitted = fl.jit(lambda tree, x: fl.stateful(tree, x))
    assert close(jitted(tree, x)[1], after)


def test_the_order_is_that_of_the_module_after_a_call_too():
    class Filling(nn.Module):
        def __init__(self, swapped=False):
            super().__init__()
            self.tables = {}
            self.inner = nn.Linear(2, 2)
            self.last = []
            for name in ("one", "two")[:: -1 if swapped else 1]:
                setattr(self, name, (1, 2))

        def __call__(self, x):
            self.tables[0] = mx.ones(2)
            self.last.append(mx.zeros(2))
            return self.inner(x)

    model = Filling()
    tree = fl.from_mlx(model)
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(Filling(swapped=True)))
    assert [*fl.to_mlx(tree)][:3] == [*model][:3]
    _, tree = fl.stateful(tree, mx.ones((1, 2)))
    model(mx.ones((1, 2)))
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(model))
    assert fl.tree.paths(tree) == names(model)


def test_a_method_that_changes_the_module():
    tree = fl.from_mlx(build())
    with pytest.warns(fl.UncollectedStateWarning, match=r"Model.scale_blocks changed blocks.0.scale, blocks.1.scale, and"):
        assert tree.scale_blocks(0.25) == 2
    assert tree.blocks[0].scale == 0.5
    count, after = fl.stateful(tree.scale_blocks, 0.25)
    assert (count, after.blocks[0].scale, tree.blocks[0].scale) == (2, 0.25, 0.5)
    assert after.blocks[0].up is tree.blocks[0].up
    assert after.embed is tree.embed
    _, after = fl.stateful(tree.add_to_extra, 3.0)
    assert after.extra == 3.0
    assert after.blocks is tree.blocks


def test_shared_modules_are_ties():
    model = Shared()
    tree = fl.from_mlx(model)
    assert fl.tree.paths(tree) == ["first.weight", "first.bias", "third.weight", "third.bias"]
    assert tree.second is tree.first
    x = mx.ones((1, 3))
    assert same(tree(x), model(x))
    edited = tree.at("first.bias").set(mx.ones(3))
    model.first.bias = mx.ones(3)
    assert same(edited(x), model(x))
    back = fl.to_mlx(edited)
    assert back.first is back.second
    assert same(back.third.weight, back.first.weight)
    assert fl.tree.equal(fl.from_mlx(back), edited)
    model = Shared()
    tree = fl.from_mlx(model)
    grads = fl.grad(lambda tree, x: tree(x).sum())(tree, x)
    assert same(grads.first.bias, mx.grad(lambda bias: _with_bias(model, bias, x))(model.first.bias))


def _with_bias(model, bias, x):
    model.first.bias = bias
    return model(x).sum()


def test_nothing_is_kept_alive():
    tree = fl.from_mlx(build())
    structure = fl.tree.structure(tree)
    tree(X)
    gone = weakref.ref(tree)
    mx.eval(fl.tree.leaves(tree))
    before = mx.get_active_memory()
    big = tree.at("blocks.0.up.weight").set(mx.zeros((8, 4))).at("blocks.0.up").apply(lambda layer: layer)
    big = fl.from_mlx(nn.Linear(1000, 1000))
    mx.eval(fl.tree.leaves(big), big(mx.ones((1, 1000))))
    del big, tree
    gc.collect()
    assert gone() is None
    assert mx.get_active_memory() <= before
    assert structure.num_leaves > 0


def test_threads_and_recursion():
    class Tree(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = mx.ones(1)

        def __call__(self, x, again, depth):
            return self.weight * x if depth == 0 else again(x, again, depth - 1) + self.weight

    tree = fl.from_mlx(Tree())
    assert tree(mx.array([2.0]), tree, 3).item() == 5
    found = []
    threads = [threading.Thread(target=lambda: found.append(tree(mx.array([2.0]), tree, 3).item())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [5.0] * 8


def test_an_error_half_way_leaves_nothing_behind():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = mx.ones(1)

        def __call__(self, fail):
            self.weight = self.weight + 1
            if fail:
                raise RuntimeError("half way")
            return self.weight

    tree = fl.from_mlx(Failing())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="half way"):
            tree(True)
        with pytest.warns(fl.UncollectedStateWarning, match="changed weight"):
            assert tree(False).item() == 2


def test_transformations():
    tree = fl.from_mlx(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    x = mx.random.normal((5, 3))
    assert close(fl.vmap(tree)(x), tree(x))
    stacked = fl.tree.stack([tree, tree])
    assert close(fl.vmap(lambda tree, x: tree(x), (0, None))(stacked, x)[1], tree(x))
    assert fl.eval_shape(lambda tree, x: tree(x), tree, x).shape == (5, 2)
    assert same(fl.grad(lambda tree: fl.checkpoint(tree)(x).sum())(tree), fl.grad(lambda tree: tree(x).sum())(tree))
    assert fl.tree.allclose(fl.tree.map(lambda a: 2 * a, tree), tree.apply(lambda a: 2 * a))


def test_inside_a_native_module():
    class Native(fl.Module):
        body: object
        head: fl.nn.Linear

        def __call__(self, x):
            return self.head(self.body(x))

    body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm(3))
    native = Native(fl.from_mlx(body), fl.nn.Linear(3, 1))
    x = mx.random.normal((4, 2))
    out, after = fl.stateful(native, x)
    expected = native.head(body(x))
    assert same(out, expected)
    assert fl.tree.equal(after.body, fl.from_mlx(body))
    assert same(native.eval()(x), native.eval()(x))
    assert not native.eval().body.layers[0].training


def test_live_modules_are_used_again(monkeypatch):
    made = []
    monkeypatch.setattr(calls, "Live", lambda *given: made.append(given) or Live(*given))

    class Native(fl.Module):
        body: object

        def __call__(self, x):
            return self.body(x)

    body = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    for tree in (fl.from_mlx(body), Native(fl.from_mlx(body))):
        for _ in range(4):
            tree(mx.ones((1, 2)))
            tree = fl.tree.map(lambda array: array * 2, tree)
    assert len(made) == 1


def test_a_native_module_inside():
    tree = fl.from_mlx(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    mixed = tree.at("layers.0").set(fl.nn.Linear(2, 3)).at("layers.0.weight").set(tree.layers[0].weight)
    mixed = mixed.at("layers.0.bias").set(tree.layers[0].bias)
    assert type(mixed.layers[0]) is fl.nn.Linear
    x = mx.ones((1, 2))
    assert same(mixed(x), tree(x))
    assert same(fl.grad(lambda m: m(x).sum())(mixed), fl.grad(lambda m: m(x).sum())(tree))
    normed = fl.from_mlx(nn.Sequential(nn.Linear(2, 3), nn.ReLU())).at("layers.1").set(fl.nn.BatchNorm(3))
    _, after = fl.stateful(normed, mx.random.normal((4, 2)))
    assert after.layers[1].running_mean.tolist() != [0, 0, 0]
