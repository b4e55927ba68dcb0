"""Modules and arrays that stand at two places of a module of MLX."""

import copy
import pickle
import warnings

import interop.models as models
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

import frostleaf as fl


def same(one, other):
    ones, others = dict(tree_flatten(one)), dict(tree_flatten(other))
    return ones.keys() == others.keys() and all(mx.array_equal(ones[name], others[name]) for name in ones)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        self.right = self.left
        self.head = nn.Linear(3, 3)

    def __call__(self, x):
        return self.head(self.right(self.left(x) + 1))


class Target(nn.Module):
    """A frozen net that starts from the one that learns."""

    def __init__(self):
        super().__init__()
        self.online, self.target = nn.Linear(3, 3), nn.Linear(3, 3)
        self.target.update(self.online.parameters())
        self.target.freeze()

    def __call__(self, x):
        return self.online(x) - self.target(x + 1)


class Anchor(nn.Module):
    """A private array that starts from one that is trained."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 3)
        self._start = self.net.weight

    def __call__(self, x):
        return self.net(x) + ((self.net.weight - self._start) ** 2).sum()


class OneArray(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = self.scale = mx.ones(3)

    def __call__(self, x):
        return x * self.scale + self.shift


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.head.weight = self.embed.weight

    def __call__(self, x):
        return self.head(self.embed(x))


class PrivateFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self._net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.pair = (self._net, 3)
        self.net = self._net
        self.last = self._net.layers[0]

    def __call__(self, x):
        return self.last(self._net(x))


class Inside(nn.Module):
    """What is shared shares things itself, and with what is outside."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.towers = Towers()
        self.towers.head = self.one
        self.blocks = [self.towers] * 2
        self.named = {"a": self.towers.left, "b": self.towers.left.layers[2]}

    def __call__(self, x):
        return self.named["b"](self.named["a"](self.blocks[1](x)))


KINDS = [Towers, Target, Anchor, OneArray, Head, PrivateFirst, Inside]
each_kind = pytest.mark.parametrize("kind", KINDS)


def loss(model, x):
    return model(x).square().mean()


@each_kind
@pytest.mark.parametrize("optimizer", [lambda of: of.SGD(0.1, momentum=0.9), lambda of: of.AdamW(0.01)], ids=["sgd", "adamw"])
def test_training_equals_that_of_mlx(kind, optimizer):
    theirs, x = kind(), mx.random.normal((4, 3))
    ours = fl.from_mlx(theirs)
    opt, their_opt = optimizer(fl.optim), optimizer(optim)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fl.optim.SharedArrayWarning)
        state = opt.init(ours)
    for _ in range(3):
        value, grads = fl.value_and_grad(loss)(ours, x)
        ours, state = opt.update(ours, grads, state)
        expected, their_grads = nn.value_and_grad(theirs, loss)(theirs, x)
        their_opt.update(theirs, their_grads)
        assert mx.array_equal(value, expected)
    assert same(fl.to_mlx(ours).parameters(), theirs.parameters())
    assert same(fl.to_mlx(ours).trainable_parameters(), theirs.trainable_parameters())


@each_kind
def test_round_trips(kind):
    tree = fl.from_mlx(kind())
    for again in (fl.from_mlx(fl.to_mlx(tree)), pickle.loads(pickle.dumps(tree)), fl.tree.map(lambda a: a, tree)):
        assert fl.tree.structure(again) == fl.tree.structure(tree)
        assert fl.tree.equal(again, tree)
    assert fl.tree.structure(fl.from_mlx(kind())) == fl.tree.structure(tree)
    x = mx.ones((2, 3))
    assert mx.array_equal(fl.stateful(tree, x)[0], tree(x))
    assert fl.stateful(tree, x)[1] is tree
    assert mx.allclose(fl.convert(tree)(x), tree(x))


ANOTHER = fl.from_mlx(nn.Linear(3, 3))
EDITS = {
    "a layer": lambda at: at("layers.1", lambda layer: fl.nn.GELU()),
    "a layer of mlx": lambda at: at("layers.1", lambda layer: fl.from_mlx(nn.GELU())),
    "another net": lambda at: at("", lambda net: ANOTHER),
    "an array": lambda at: at("layers.0.weight", lambda weight: 2 * weight),
    "of another shape": lambda at: at("layers.0.bias", lambda bias: bias[:1]),
    "none": lambda at: at("layers.2.bias", lambda bias: None),
    "a cast": lambda at: at("", lambda net: net.astype(mx.float16)),
    "the mode": lambda at: at("", lambda net: net.eval()),
    "freezing": lambda at: at("layers.2", lambda layer: layer.freeze()),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edit_of_either_place_is_made_at_both(edit):
    tree, x = fl.from_mlx(Towers()), mx.ones((2, 3))

    def edited(place):
        return edit(lambda path, function: tree.at(f"{place}.{path}".rstrip(".")).apply(function))

    left, right = edited("left"), edited("right")
    for model in (left, right):
        assert model.left is model.right
        assert model is not tree
        live = fl.to_mlx(model)
        assert live.left is live.right
    assert repr(left) == repr(right)
    assert fl.tree.structure(left) == fl.tree.structure(right)
    assert mx.array_equal(left(x), right(x))


def test_unlike_modules_at_the_two_places_are_refused():
    tree = fl.from_mlx(Towers())
    with pytest.raises(ValueError, match=r"Towers.right is tied to left, and .* unlike values .*untie\('right'\)"):
        tree.replace(left=fl.nn.Linear(3, 3), right=fl.nn.GELU())
    with pytest.raises(ValueError, match=r"no module at left\. Take the tie away first: \.untie\('right'\)"):
        tree.replace(left=None)
    with pytest.raises(ValueError, match=r"right is tied to left, and .* unlike values"):
        tree.replace(right=mx.tanh)
    for edit in (lambda: tree.replace(right=None), lambda: tree.at("right").set(None), lambda: tree.at("right").apply(print)):
        with pytest.raises(ValueError, match=r"right is tied to left, and .* no module at right\. .*: \.untie\('right'\)"):
            edit()
    apart = tree.untie("right").replace(right=fl.nn.GELU())
    assert type(apart.left) is type(tree.left)
    assert type(fl.to_mlx(apart).right) is nn.GELU


def test_what_shares_inside_of_what_is_shared_follows():
    tree = fl.from_mlx(Inside())
    after = tree.at("blocks.1.right.layers.2.weight").set(mx.zeros((3, 3)))
    after = after.at("blocks.0.head.bias").set(mx.zeros(3))
    live = fl.to_mlx(after)
    assert live.one is live.towers.head is live.blocks[1].head
    assert live.named["b"] is live.blocks[0].right.layers[2] is live.towers.left.layers[2]
    assert not live.named["b"].weight.any()
    assert not after.one.bias.any()
    assert not after.named["a"].layers[2].weight.any()
    assert len(fl.tree.leaves(after)) == 6
    inner = fl.from_mlx(Inside()).towers
    assert inner.right is inner.left
    assert fl.tree.paths(inner)[:2] == ["left.layers.0.weight", "left.layers.0.bias"]


def test_the_source_is_where_mlx_trains():
    tree = fl.from_mlx(PrivateFirst())
    assert [name for name, _ in tree_flatten(tree.trainable_parameters())] == ["net.layers.0.weight", "net.layers.0.bias"]
    live = fl.to_mlx(tree)
    assert live.net is live._net is live.pair[0]
    assert live.last is live.net.layers[0]


def test_layers_that_are_the_same_but_for_their_settings_are_two_modules():
    tree = fl.nn.Sequential(*[fl.nn.Sequential(fl.nn.Linear(2, 2), each) for each in (fl.nn.ReLU(), fl.nn.GELU())])
    tied = tree.tie({f"layers.1.layers.0.{name}": f"layers.0.layers.0.{name}" for name in ("weight", "bias")})
    live = fl.to_mlx(tied)
    assert [type(each.layers[1]) for each in live.layers] == [nn.ReLU, nn.GELU]
    assert live.layers[0].layers[0] is live.layers[1].layers[0]


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm(3)
        self.norms = [self.norm] * 2

    def __call__(self, x):
        for norm in self.norms:
            x = norm(x * 2 + 1)
        return x


@pytest.mark.parametrize("build", [Norms, lambda: nn.Sequential(*[nn.BatchNorm(3)] * 2)], ids=["norms", "a sequence"])
def test_the_statistics_of_a_norm_at_two_places(build):
    theirs, x = build(), mx.random.normal((5, 3))
    tree = fl.from_mlx(theirs)
    theirs(x)
    for each in (tree, fl.convert(tree)):
        assert same(fl.to_mlx(fl.stateful(each, x)[1]).parameters(), theirs.parameters())


def test_a_summary_counts_the_calls_of_both_places():
    summary = fl.summary(fl.from_mlx(Towers()), mx.ones((2, 3)))
    assert {row.path: row.calls for row in summary.rows if row.path[:4] in ("left", "righ", "head")} == {
        "left": 2, "left.layers.0": 2, "left.layers.1": 2, "left.layers.2": 2, "head": 1,
    }  # fmt: skip
    assert "tied: right → left" in repr(summary)
    private = fl.summary(fl.from_mlx(PrivateFirst()), mx.ones((2, 3)))
    assert {row.path: row.calls for row in private.rows}["net.layers.0"] == 2
    assert "right=→left" in repr(fl.from_mlx(Towers()))


def test_views_have_a_shared_module_at_both_places_and_its_arrays_once():
    theirs, tree = Towers(), fl.from_mlx(Towers())
    assert [name for name, _ in tree.named_modules()] == [name for name, _ in theirs.named_modules()]
    assert tree.children().keys() == theirs.children().keys()
    assert len(tree_flatten(tree.parameters())) == 6
    assert tree.at(nn.Linear).paths() == ["left.layers.0", "left.layers.2", "head"]
    with pytest.raises(LookupError, match=r"'right' is tied to 'left': select that"):
        tree.at("right.**").paths()
    with pytest.raises(LookupError, match=r"is tied to 'left.layers.0.weight'"):
        tree.with_frozen("right")


def test_a_shared_layer_is_quantized_once():
    theirs = nn.Sequential(*[nn.Linear(64, 64)] * 2)
    small = fl.quantize(fl.from_mlx(theirs))
    assert small.layers[0] is small.layers[1]
    nn.quantize(theirs)
    assert same(fl.to_mlx(small).parameters(), theirs.parameters())


def test_shared_arrays_are_the_models_own():
    tree = fl.from_mlx(models.Shared())
    assert tree.third.weight is not tree.first.weight
    assert mx.array_equal(tree.third.weight, tree.first.weight)


def filled(model):
    return model.map_modules(lambda path, layer: layer.replace(lora_b=layer.lora_b + 0.1) if "lora_b" in layer else None)


@pytest.mark.parametrize(
    "where", ["left.**", "layers", "left.**.weight", ["right.layers.0", "left.layers.2"], "right.layers.0.weight"], ids=str
)
@pytest.mark.parametrize("convert", [False, True])
def test_a_shared_net_is_adapted_once(where, convert):
    tree, x = fl.from_mlx(Towers()), mx.random.normal((2, 3))
    tree = fl.convert(tree) if convert else tree
    adapted = fl.lora(tree, (fl.nn if convert else nn).Linear if where == "layers" else where, rank=2)
    assert mx.allclose(adapted(x), tree(x))
    adapted = filled(adapted)
    assert adapted.left is adapted.right
    assert type(adapted.right.layers[0]) is fl.nn.LoRALinear
    assert not mx.allclose(adapted(x), tree(x))
    live = fl.to_mlx(adapted)
    assert live.left is live.right
    assert mx.array_equal(live(x), adapted(x))
    fused = fl.fuse(adapted)
    assert fused.left is fused.right
    assert mx.allclose(fused(x), adapted(x), atol=1e-5)


def test_adapting_a_shared_net_equals_mlx_lm():
    tuner = pytest.importorskip("mlx_lm.tuner.utils")
    theirs = nn.Module()
    theirs.layers = [Towers()]
    ours = fl.from_mlx(theirs)
    mx.random.seed(1)
    ours = fl.lora(ours, ["layers.0.right.layers.0", "layers.0.left.layers.2"], rank=2, scale=2.0)
    mx.random.seed(1)
    theirs.freeze()
    names = {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["right.layers.0", "right.layers.2"]}
    tuner.linear_to_lora_layers(theirs, 1, names)
    live = fl.to_mlx(ours)
    for model in (live, theirs):
        assert model.layers[0].left is model.layers[0].right
    assert same(live.trainable_parameters(), theirs.trainable_parameters())


@pytest.mark.parametrize(
    ("where", "adapted"), [(nn.Linear, (0, 2)), ("layers.2", (2,)), ("layers.0", (0,)), ("layers.*.weight", (0, 2))]
)
def test_each_place_of_a_layer_gets_its_adapter_as_in_mlx(where, adapted):
    shared = nn.Linear(3, 3)
    tree, x = fl.from_mlx(nn.Sequential(shared, nn.ReLU(), shared)), mx.random.normal((2, 3))
    model = fl.lora(tree, where, rank=2)
    assert tuple(index for index, layer in enumerate(model.layers) if "lora_a" in layer) == adapted
    bases = [layer.linear if "lora_a" in layer else layer for layer in model.layers[::2]]
    assert bases[0].weight is bases[1].weight
    assert mx.allclose(model(x), tree(x))
    assert len(tree_flatten(model.trainable_parameters())) == 2 * len(adapted)
    assert len(fl.tree.leaves(model)) == 2 + 2 * len(adapted)


@each_kind
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_files_of_weights_go_both_ways(kind, ending, tmp_path):
    theirs, tree = kind(), fl.from_mlx(kind())
    theirs.save_weights(str(tmp_path / f"theirs.{ending}"))
    tree.save_weights(tmp_path / f"ours.{ending}")
    assert mx.load(str(tmp_path / f"theirs.{ending}")).keys() == mx.load(str(tmp_path / f"ours.{ending}")).keys()
    assert same(fl.to_mlx(tree.load_weights(tmp_path / f"theirs.{ending}")).parameters(), theirs.parameters())
    theirs.load_weights(str(tmp_path / f"ours.{ending}"))
    assert same(fl.to_mlx(tree).parameters(), theirs.parameters())
    tree.save_weights(tmp_path / "in files", max_shard_bytes=40)
    assert fl.tree.equal(fl.from_mlx(kind().freeze()).load_weights(tmp_path / "in files").parameters(), tree.parameters())


@each_kind
def test_the_parameters_of_mlx_are_taken(kind):
    theirs, tree = kind(), fl.from_mlx(kind())
    for after in (tree.update(theirs.parameters()), tree.load_weights(tree_flatten(theirs.parameters()))):
        assert same(fl.to_mlx(after).parameters(), theirs.parameters())
        assert fl.tree.structure(after) == fl.tree.structure(tree)
    own = fl.to_mlx(tree).parameters()
    assert fl.tree.equal(tree.update(own), tree)


def test_unlike_weights_for_two_places_are_refused():
    tree = fl.from_mlx(Towers())
    apart = tree.untie().apply(lambda array: mx.random.normal(array.shape))
    with pytest.raises(ValueError, match=r"right.layers.0.weight is tied to left.layers.0.weight, and was given another array"):
        tree.update(apart.parameters())
    with pytest.raises(
        ValueError, match=r"right.layers.0.bias, which is tied to 'left.layers.0.bias', whose array is used: rename"
    ):
        tree.load_weights(tree_flatten(apart.parameters()))
    with pytest.raises(ValueError, match='does not have parameter named "right"'):
        tree.update({"right": apart.right.parameters()})
    bare = tree.replace(left=tree.left.at("layers.2.bias").set(None))
    with pytest.raises(ValueError, match=r"Received 2 parameters"):
        bare.load_weights(tree_flatten(fl.to_mlx(tree).parameters()))


def through_a_file(tree, folder):
    fl.save(folder / "tree", tree)
    return fl.load(folder / "tree", tree)


def step(tree, x):
    opt = fl.optim.SGD(0.1)
    return opt.update(tree, fl.grad(loss)(tree, x), opt.init(tree))[0]


THROUGH = {
    "a file": lambda tree, folder: through_a_file(tree, folder),
    "jit": lambda tree, _: fl.jit(lambda tree: tree)(tree),
    "a jitted cast": lambda tree, _: fl.jit(lambda tree: tree.astype(mx.float16))(tree).astype(mx.float32),
    "stacks": lambda tree, _: fl.tree.unstack(fl.tree.stack([tree, tree]))[1],
    "vmap": lambda tree, _: fl.tree.unstack(fl.vmap(lambda tree: tree)(fl.tree.stack([tree, tree])))[0],
    "parts": lambda tree, _: fl.tree.combine(*fl.tree.partition(tree, "**.weight")),
    "vectors": lambda tree, _: (lambda vectors, back: back(vectors))(*fl.tree.ravel(tree)),
    "packing": lambda tree, _: fl.optim.pack(tree).unpack(),
    "a deep copy": lambda tree, _: copy.deepcopy(tree),
    "modes": lambda tree, _: tree.eval().train(),
    "freezing": lambda tree, _: tree.with_frozen("**", frozen=True).with_frozen("**", frozen=False),
    "map_modules": lambda tree, _: tree.map_modules(lambda path, module: module.eval()).map_modules(
        lambda path, module: module.train()
    ),
    "apply": lambda tree, _: tree.at("**").apply(lambda array: array + 0),
    "a trained copy": lambda tree, _: fl.tree.map(lambda one, other: one, tree, step(tree, mx.ones((2, 3)))),
    "update_modules": lambda tree, _: tree.update_modules(tree.children()),
}


@pytest.mark.parametrize("kind", [Towers, PrivateFirst, Inside])
@pytest.mark.parametrize("through", THROUGH.values(), ids=THROUGH)
def test_what_is_shared_stays_so_through(kind, through, tmp_path):
    tree, x = fl.from_mlx(kind()), mx.random.normal((2, 3))
    after = through(tree, tmp_path)
    assert fl.tree.structure(after) == fl.tree.structure(tree)
    assert mx.allclose(after(x), tree(x), rtol=1e-2, atol=1e-2)
    live, there = fl.to_mlx(after), kind()
    ours, theirs = (
        [[name for name, each in model.named_modules() if each is module] for _, module in model.named_modules()]
        for model in (live, there)
    )
    assert sorted(map(sorted, ours)) == sorted(map(sorted, theirs))
    for module in fl.eval_shape(lambda: tree), tree:
        assert repr(module)
        assert fl.tree.diff(module, module) == fl.tree.diff(tree, tree)
    assert repr(fl.summary(after, x))
    assert after._repr_html_()


class Changing(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm(3))
        self.blocks = [self.block] * 2
        self._count = 0

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def grow(self):
        self.blocks[1].layers.append(nn.Tanh())
        self.blocks.append(self.block)

    def split(self):
        self.blocks[1] = nn.Linear(3, 3)


@pytest.mark.parametrize("method", ["__call__", "grow", "split"])
def test_a_method_that_changes_what_is_shared(method):
    theirs, x = Changing(), mx.random.normal((5, 3))
    tree = fl.from_mlx(theirs)
    args = (x,) if method == "__call__" else ()
    _, after = fl.stateful(getattr(tree, method), *args)
    mx.random.seed(0)
    getattr(theirs, method)(*args)
    live = fl.to_mlx(after)
    assert [each is live.block for each in live.blocks] == [each is theirs.block for each in theirs.blocks]
    assert live.parameters().keys() == theirs.parameters().keys()
    assert same(live.block.parameters(), theirs.block.parameters())
    assert fl.tree.structure(fl.from_mlx(live)) == fl.tree.structure(after)
    assert fl.tree.paths(tree) == fl.tree.paths(fl.from_mlx(Changing()))


def test_a_call_of_a_shared_part_is_recorded():
    theirs, x = Changing(), mx.random.normal((5, 3))
    tree = fl.from_mlx(theirs)

    def twice(tree, x):
        return tree.blocks[1](tree.block(x))

    _, after = fl.stateful(twice, tree, x)
    twice(theirs, x)
    assert same(fl.to_mlx(after).parameters(), theirs.parameters())
