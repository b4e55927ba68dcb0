"""Trees as modules of ``mlx.nn``, and layers of ``mlx.nn`` in trees as native ones."""

import copy
import pickle
import types

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx.utils
import pytest
from interop.checks import arrays, same
from interop.models import Model, Shared

import frostleaf as fl

IMAGE, SEQUENCE = (2, 6, 6, 4), (2, 5, 4)
LAYERS = {
    "ALiBi": ((), None),
    "AvgPool1d": ((2,), SEQUENCE),
    "AvgPool2d": ((2, 1, 1), IMAGE),
    "AvgPool3d": ((2,), (1, 4, 4, 4, 2)),
    "BatchNorm": ((4,), SEQUENCE),
    "BatchNorm without": ((4, 1e-5, 0.1, False, False), SEQUENCE),
    "Bilinear": ((4, 4, 3), None),
    "CELU": ((0.7,), SEQUENCE),
    "Conv1d": ((4, 3, 3, 2, 1), SEQUENCE),
    "Conv2d": ((4, 3, (3, 2), 2, (1, 0)), IMAGE),
    "Conv3d": ((2, 3, 3), (1, 4, 4, 4, 2)),
    "ConvTranspose1d": ((4, 3, 3), SEQUENCE),
    "ConvTranspose2d": ((4, 3, 3, 2), IMAGE),
    "ConvTranspose3d": ((2, 3, 3), (1, 4, 4, 4, 2)),
    "Dropout": ((0.1,), SEQUENCE),
    "Dropout2d": ((0.3,), IMAGE),
    "Dropout3d": ((0.5,), (1, 4, 4, 4, 2)),
    "ELU": ((0.7,), SEQUENCE),
    "Embedding": ((5, 4), "tokens"),
    "GELU": (("tanh",), SEQUENCE),
    "GLU": ((), SEQUENCE),
    "GRU": ((4, 3), SEQUENCE),
    "GRU without": ((4, 3, False), SEQUENCE),
    "GroupNorm": ((2, 4), SEQUENCE),
    "GroupNorm without": ((2, 4, 1e-5, False), SEQUENCE),
    "HardShrink": ((), SEQUENCE),
    "HardTanh": ((), SEQUENCE),
    "Hardswish": ((), SEQUENCE),
    "Identity": ((), SEQUENCE),
    "InstanceNorm": ((4,), SEQUENCE),
    "InstanceNorm with": ((4, 1e-5, True), SEQUENCE),
    "LSTM": ((4, 3), SEQUENCE),
    "LSTM without": ((4, 3, False), SEQUENCE),
    "LayerNorm": ((4,), SEQUENCE),
    "LayerNorm without": ((4, 1e-5, False), SEQUENCE),
    "LeakyReLU": ((0.2,), SEQUENCE),
    "Linear": ((4, 3), SEQUENCE),
    "Linear without": ((4, 3, False), SEQUENCE),
    "LogSigmoid": ((), SEQUENCE),
    "LogSoftmax": ((), SEQUENCE),
    "MaxPool1d": ((2,), SEQUENCE),
    "MaxPool2d": (((2, 3), 1, (1, 1)), IMAGE),
    "MaxPool3d": ((2,), (1, 4, 4, 4, 2)),
    "Mish": ((), SEQUENCE),
    "MultiHeadAttention": ((4, 2), "three"),
    "PReLU": ((), SEQUENCE),
    "QuantizedEmbedding": ((5, 64), "tokens"),
    "QuantizedLinear": ((64, 32), (3, 64)),
    "RMSNorm": ((4,), SEQUENCE),
    "RNN": ((4, 3), SEQUENCE),
    "RNN without": ((4, 3, False), SEQUENCE),
    "ReLU": ((), SEQUENCE),
    "ReLU2": ((), SEQUENCE),
    "ReLU6": ((), SEQUENCE),
    "RoPE": ((4,), SEQUENCE),
    "SELU": ((), SEQUENCE),
    "SiLU": ((), SEQUENCE),
    "Sigmoid": ((), SEQUENCE),
    "Softmax": ((), SEQUENCE),
    "Softmin": ((), SEQUENCE),
    "Softplus": ((), SEQUENCE),
    "Softshrink": ((), SEQUENCE),
    "Softsign": ((), SEQUENCE),
    "Step": ((), SEQUENCE),
    "Tanh": ((), SEQUENCE),
    "TransformerEncoder": ((1, 4, 2), "mask"),
    "Transformer": ((4, 2, 1, 1), None),
    "Upsample": (((2, 3),), IMAGE),
}


def made(name, package):
    mx.random.seed(0)
    return getattr(package, name.split(" ")[0])(*LAYERS[name][0])


def call(name, layer):
    shape = LAYERS[name][1]
    if shape is None:
        return []
    mx.random.seed(1)
    if shape == "tokens":
        return layer(mx.array([[0, 4]]))
    x = mx.random.normal(SEQUENCE if isinstance(shape, str) else shape)
    return layer(x, x, x) if shape == "three" else layer(x, None) if shape == "mask" else layer(x)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_layers_become_their_twins(name):
    ours, theirs = made(name, fl.nn), made(name, nn)
    back = fl.to_mlx(ours)
    assert type(back) is type(theirs)
    assert {*back} == {*theirs}
    assert fl.tree.structure(fl.convert(fl.from_mlx(back))) == fl.tree.structure(ours)
    assert {*vars(back)} == {*vars(theirs)}
    assert {key: value for key, value in vars(back).items() if key[:1] != "_"} == {
        key: value for key, value in vars(theirs).items() if key[:1] != "_"
    }
    assert same(arrays(ours), [arrays(back)[key] for key in arrays(ours)])
    assert same(call(name, back), call(name, ours))
    assert repr(back) == repr(theirs)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_layers_are_converted(name):
    theirs = made(name, nn)
    tree = fl.from_mlx(theirs)
    native = fl.convert(tree)
    assert type(native) is getattr(fl.nn, name.split(" ")[0])
    assert fl.tree.structure(native) == fl.tree.structure(made(name, fl.nn))
    assert {*map(id, fl.tree.leaves(native))} == {*map(id, fl.tree.leaves(tree))}
    assert same(call(name, native), call(name, theirs))
    assert fl.convert(native) is native
    assert fl.tree.structure(fl.from_mlx(fl.to_mlx(native))) == fl.tree.structure(tree)


@pytest.mark.parametrize(
    ("layer", "changes", "expected"),
    [
        (nn.Dropout(0.5), {"p": 0.1}, nn.Dropout(0.1)),
        (nn.GELU(), {"approx": "tanh"}, nn.GELU("tanh")),
        (nn.LeakyReLU(), {"negative_slope": 0.5}, nn.LeakyReLU(0.5)),
        (nn.CELU(), {"alpha": 0.5}, nn.CELU(0.5)),
        (nn.MaxPool2d(2), {"kernel_size": (3, 3), "padding": (1, 1)}, nn.MaxPool2d(3, 2, 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_of_mlx_has_the_names_that_its_constructor_takes(layer, changes, expected):
    tree = fl.from_mlx(layer)
    assert repr(tree) == repr(fl.convert(tree))
    after = tree.replace(**changes)
    assert fl.tree.equal(after, fl.from_mlx(expected))
    assert fl.tree.equal(
        fl.from_mlx(nn.Sequential(layer)).at("layers.0").apply(lambda one: one.replace(**changes)).layers[0], after
    )
    own = next(name for name in tree.__frostleaf__.fields)
    assert tree.replace(**{own: getattr(tree, own)}) is tree
    with pytest.raises(TypeError, match="has no field 'q'"):
        tree.replace(q=1)


def test_what_is_not_converted():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(2, 2), nn.SinusoidalPositionalEncoding(4), nn.Linear(2, 2), nn.Linear(2, 2))
    model.layers[3].extra = 3
    converted = fl.convert(fl.from_mlx(model).freeze().eval())
    assert [type(layer) is fl.nn.Linear for layer in converted.layers] == [False, False, True, False]
    assert converted.trainable_parameters() == {"layers": [{}, {}, {}, {}]}
    assert not converted.layers[2].training


def test_converted_inside_original_code():
    tree = fl.from_mlx(Plain())
    converted = fl.convert(tree)
    assert type(converted.inner) is fl.nn.Linear
    x = mx.ones((1, 3))
    assert same(converted(x), tree(x))
    again = fl.to_mlx(converted)
    assert type(again.inner) is nn.Linear
    assert fl.tree.equal(fl.from_mlx(again), tree)
    grads = fl.grad(lambda m: m(x).sum())
    assert same(grads(converted), grads(tree))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def __call__(self, x):
        return self.inner(x)


def test_ties_are_kept_in_conversions():
    tree = fl.from_mlx(Shared()).tie({"third.weight": "first.weight"})
    converted = fl.convert(tree)
    assert fl.tree.paths(converted) == fl.tree.paths(tree)
    back = fl.to_mlx(converted)
    assert back.first is back.second
    assert back.third.weight is back.first.weight
    x = mx.ones((1, 3))
    assert same(converted(x), back(x))
    native = fl.nn.Sequential(fl.nn.Embedding(5, 4), fl.nn.Linear(4, 5, bias=False)).tie({"layers.1.weight": "layers.0.weight"})
    module = fl.to_mlx(native)
    assert module.layers[1].weight is module.layers[0].weight


class Body(fl.Module):
    """A class of the user."""

    layers: tuple
    heads: dict
    scale: mx.array
    norm: fl.nn.BatchNorm
    power: int = fl.static(default=2)

    def __init__(self):
        self.layers = [fl.nn.Linear(3, 3), fl.nn.Linear(3, 3)]
        self.heads = {"out": fl.nn.Linear(3, 1)}
        self.scale = mx.ones(3)
        self.norm = fl.nn.BatchNorm(3)

    def __call__(self, x):
        for layer in self.layers:
            x = fl.nn.relu(layer(x))
        return self.heads["out"](self.norm(x * self.scale)) ** self.power


def test_a_class_of_the_user():
    tree = Body()
    module = fl.to_mlx(tree)
    assert isinstance(module, nn.Module)
    assert type(module).__name__ == "Body"
    assert sorted(arrays(module)) == sorted(arrays(tree))
    x = mx.random.normal((4, 3))
    assert same(module.eval()(x), tree.eval()(x))
    module.train()

    def loss(model, x):
        return model(x).square().sum()

    value, grads = nn.value_and_grad(module, loss)(module, x)
    (ours, after), ours_grads = fl.value_and_grad(lambda tree, x: _with_state(tree, x), has_aux=True)(tree, x)
    assert same(ours, value)
    assert same(grads["layers"][0]["weight"], ours_grads.layers[0].weight)
    module = fl.to_mlx(tree)
    out, after = fl.stateful(tree, x)
    assert same(module(x), out)
    assert same(module.norm.running_mean, after.norm.running_mean)
    assert same(tree.norm.running_mean, mx.zeros(3))
    optim.SGD(0.1).update(module, grads)
    assert not same(module.eval()(x), tree.eval()(x))
    assert fl.tree.equal(fl.from_mlx(fl.to_mlx(tree.freeze(keys="bias").eval())), tree.freeze(keys="bias").eval())
    module = fl.to_mlx(tree)
    module.freeze()
    assert fl.tree.leaves(fl.from_mlx(module).trainable_parameters()) == []
    del module["scale"]
    with pytest.raises(ValueError, match="Body has no 'scale' any more"):
        module(x)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["copied", "pickled"])
def test_a_copy_of_a_class_of_the_user(again):
    module, x = fl.to_mlx(Body()), mx.random.normal((4, 3))
    module(x)
    whole = nn.Sequential(nn.Linear(3, 3), module)
    other = again(whole)
    assert same(other(x), whole(x))
    other.layers[1].scale = 2 * other.layers[1].scale
    assert not same(other.eval()(x), whole.eval()(x))
    assert fl.tree.equal(fl.from_mlx(again(module)), fl.from_mlx(module))


class Items(fl.Module):
    """A class of the user with the methods of a sequence."""

    parts: tuple
    first: int = fl.static(default=0)

    def __getitem__(self, index):
        return self.parts[self.first + index]

    def __len__(self):
        return len(self.parts)

    def __iter__(self):
        return iter(self.parts)

    def __contains__(self, index):
        return index in range(len(self))

    def __call__(self, x):
        return self[0](x)


class Counting(nn.Module):
    """Original code that takes a submodule for a sequence."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def __call__(self, x):
        has = [name in self.inner for name in ("parts", 1, "other", 2)]
        return len(self.inner), [each(x) for each in self.inner], self.inner[-1](x), has


@pytest.mark.parametrize("wrap", [lambda model: model, fl.to_mlx], ids=["inside a wrapped model", "inside one of MLX"])
def test_a_class_of_the_user_that_is_a_sequence(wrap):
    items, x = Items((fl.nn.Linear(2, 2), fl.nn.Linear(2, 2))), mx.ones((1, 2))
    count, outs, last, has = wrap(fl.from_mlx(Counting()).replace(inner=items))(x)
    assert (count, has) == (2, [True, True, False, False])
    assert same(outs, [each(x) for each in items])
    assert same(last, items[-1](x))
    module = fl.to_mlx(items)
    grads = mlx.utils.tree_map(mx.ones_like, module.trainable_parameters())
    optim.SGD(1.0).update(module, grads)
    assert same(module.parts[0].bias, items[0].bias - 1)


@pytest.mark.parametrize("to", [fl.to_mlx, lambda tree: fl.to_mlx(fl.from_mlx(fl.to_mlx(tree)))], ids=["made", "made again"])
def test_layers_of_other_kinds_in_a_class_of_the_user(to):
    class Wide(fl.Module):
        first: object
        rest: tuple

        def __call__(self, x):
            return self.rest[0](self.first(x))

    class Twice(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def __call__(self, x):
            return 2 * self.layer(x)

    tree, x = Wide(fl.nn.Linear(32, 32), [fl.nn.Linear(32, 8)]), mx.random.normal((2, 32))
    module = to(tree)
    nn.quantize(module, group_size=32)
    quantized = fl.quantize(tree, group_size=32)
    assert same(module(x), quantized(x))
    assert fl.tree.equal(fl.convert(fl.from_mlx(module)), quantized)
    module = to(tree)
    module.rest[0] = Twice(module.rest[0])
    assert same(module(x), 2 * tree(x))
    assert same(fl.from_mlx(module)(x), 2 * tree(x))
    assert same(fl.to_mlx(fl.from_mlx(module))(x), 2 * tree(x))


def _with_state(tree, x):
    out, after = fl.stateful(tree, x)
    return out.square().sum(), after


def test_what_is_done_to_one_does_not_reach_the_other():
    tree = fl.from_mlx(Model())
    module = fl.to_mlx(tree)
    expected = tree(mx.array([[1, 2]]))
    module.blocks[0].up.weight += 1
    module.args.dims = 0
    module.sizes.append(4)
    module.freeze()
    assert same(tree(mx.array([[1, 2]])), expected)
    assert tree.sizes == [1, 2, 3]


class Around(fl.Module):
    """A class of the user around modules of MLX."""

    body: object
    more: tuple = ()

    def __init__(self, body, *more):
        self.body, self.more = body, more

    def __call__(self, x):
        x = self.body(x)
        for each in self.more:
            x = each(x)
        return x


class Changing(nn.Module):
    """Changes itself in every way."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.late = nn.BatchNorm(4), nn.Linear(4, 4), None
        self.count, self.seen = 0, []

    def __call__(self, x):
        if self.late is None:
            self.late = nn.Linear(4, 4)
        self.count += 1
        self.seen.append(x.shape)
        self.last = x
        return self.late(self.linear(self.norm(x)))


def test_modules_of_mlx_in_a_class_of_the_user_change_as_they_do_in_mlx():
    mx.random.seed(0)
    model = Around(fl.from_mlx(Changing()), fl.from_mlx(nn.BatchNorm(4)), fl.nn.BatchNorm(4))
    module, linear, x = fl.to_mlx(model), None, mx.random.normal((5, 4))
    theirs = [fl.to_mlx(each) for each in (model.body, *model.more)]
    for step in range(3):
        mx.random.seed(1)
        out = module(x)
        mx.random.seed(1)
        expected = x
        for each in theirs:
            expected = each(expected)
        assert same(out, expected)
        for own, other in zip([module.body, *module.more], theirs, strict=True):
            assert same(arrays(own), arrays(other))
        assert (module.body.count, len(module.body.seen)) == (step + 1, step + 1)
        linear = linear or module.body.linear
        assert module.body.linear is linear
    module.eval()
    module(x)
    assert module.body.count == 4
    assert (model.body.count, model.body.late) == (0, None)


class Growing(nn.Module):
    """Has more in a list after each call."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(4, 4), [mx.zeros(4)]

    def __call__(self, x):
        self.seen.append(x)
        return self.linear(x) * len(self.seen)


class Swapping(nn.Module):
    """Puts a layer of another class in the place of one."""

    def __init__(self):
        super().__init__()
        self.first, self.linear = nn.Linear(4, 4), nn.Linear(4, 4)

    def __call__(self, x):
        x = self.linear(self.first(x))
        self.first = nn.Identity()
        return x


class Scaled(nn.Module):
    """Has a number in an object."""

    def __init__(self):
        super().__init__()
        self.linear, self.held = nn.Linear(4, 4), types.SimpleNamespace(scale=1.0)

    def __call__(self, x):
        return self.linear(x) * self.held.scale


def scale(module):
    if isinstance(module, Scaled):
        module.held.scale += 1.0


@pytest.mark.parametrize("kind", [Growing, Swapping, Scaled])
def test_what_a_module_of_mlx_in_a_class_of_the_user_becomes(kind):
    tree, x = fl.from_mlx(kind()), mx.random.normal((5, 4))
    module, alone = fl.to_mlx(Around(tree)), fl.to_mlx(tree)
    linear = module.body.linear
    for _ in range(3):
        assert same(module(x), alone(x))
        assert same(arrays(module.body), arrays(alone))
        assert module.body.linear is linear
        scale(module.body)
        scale(alone)


def test_the_statistics_of_what_is_computed_again_in_a_class_of_the_user():
    tree, x = Around(fl.nn.BatchNorm(4)), mx.random.normal((5, 4))
    module, plain = fl.to_mlx(tree.at("body").apply(fl.checkpoint)), fl.to_mlx(tree)
    assert same(module(x), plain(x))
    assert same(arrays(module), arrays(plain))
    assert not same(arrays(module), arrays(fl.to_mlx(tree)))


def test_what_mlx_has_no_place_for():
    class Pair:
        def __init__(self, array):
            self.array = array

    fl.register_pytree_node(Pair, lambda pair: ([pair.array], None), lambda _, children: Pair(*children))

    class Holder(fl.Module):
        pair: object

    with pytest.raises(
        TypeError, match=r"pair is a .*Pair, and a module of mlx.nn has arrays in itself, in lists and in dicts"
    ):
        fl.to_mlx(Holder(Pair(mx.ones(1))))
    with pytest.raises(TypeError, match="weight is a ShapeDtypeStruct"):
        fl.to_mlx(fl.eval_shape(fl.nn.Linear, 2, 2))
    with pytest.raises(TypeError, match=r"fl.to_mlx takes a module, and was given \[1\]"):
        fl.to_mlx([1])
    with pytest.raises(TypeError, match=r"was given a Linear, which is of mlx.nn already$"):
        fl.to_mlx(nn.Linear(2, 2))
