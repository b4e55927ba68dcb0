"""What wrapped modules have of their classes in MLX: methods of their own, new ones, and the class itself."""

import operator
import re
import warnings

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop.checks import same
from mlx.utils import tree_flatten, tree_map

import frostleaf as fl


class Net(nn.Module):
    """Has layers with methods unfreeze of their own."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm(2)
        self.packed = nn.QuantizedLinear(64, 64)
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm(2))

    def __call__(self, x):
        return self.inner(self.norm(x))


def trained(model):
    return sorted(name for name, _ in tree_flatten(model.trainable_parameters()))


@pytest.mark.parametrize("path", ["norm", "packed", "inner", "inner.layers.1"])
def test_a_selected_module_is_unfrozen_as_in_mlx(path):
    model = Net()
    model.freeze()
    tree = fl.from_mlx(model)
    layer = model
    for name in path.split("."):
        layer = layer[int(name) if name.isdecimal() else name]
    layer.unfreeze()
    for after in (tree.at(path).unfreeze(), tree.with_frozen(path, frozen=False)):
        assert trained(after) == trained(model)
        assert fl.tree.structure(after) == fl.tree.structure(fl.from_mlx(model))


def test_all_modules_of_a_class_are_unfrozen_as_in_mlx():
    model = Net()
    model.freeze()
    tree = fl.from_mlx(model).at(nn.BatchNorm).unfreeze()
    model.norm.unfreeze()
    model.inner.layers[1].unfreeze()
    assert trained(tree) == trained(model)
    assert trained(fl.from_mlx(model).freeze(recurse=False, keys="norm").at("norm").unfreeze()) == trained(model)


def test_a_module_that_is_shared_is_unfrozen_by_its_own_method():
    model = Net()
    model.again = model.norm
    model.freeze()
    tree = fl.from_mlx(model)
    model.norm.unfreeze()
    for where in (["norm", "again"], nn.BatchNorm):
        after = fl.to_mlx(tree.at(where).unfreeze())
        assert after.norm is after.again
        assert trained(after.norm) == trained(model.norm)
    with pytest.raises(LookupError, match=r"tied to 'norm\.weight'"):
        tree.at("again").unfreeze()


@pytest.mark.parametrize("method", ["freeze", "unfreeze"])
def test_a_native_module_has_its_own_methods_too(method):
    class Own(fl.nn.Linear):
        def freeze(self, **options):
            return super().freeze(keys="bias", **options)

        def unfreeze(self, **options):
            return super().unfreeze(keys="weight", **options)

    model = fl.nn.Sequential(Own(2, 2))
    model = model.freeze() if method == "unfreeze" else model
    after = getattr(model.at("layers.0"), method)()
    assert trained(after) == ["layers.0.weight"]
    assert after.layers[0].weight is model.layers[0].weight


def test_what_a_class_is_given_later_is_found():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = mx.ones(2)

    class Later(Late):
        pass

    trees = [fl.from_mlx(Late()), fl.from_mlx(Later()), fl.jit(lambda tree: tree)(fl.from_mlx(Later()))]
    with pytest.raises(AttributeError, match="double"):
        trees[0].double()
    Late.double = lambda self, by=2: self.weight * by
    Late.size = property(lambda self: self.weight.size)
    Late.scale = 3
    Late.make = staticmethod(lambda: "made")
    for tree in (*trees, fl.from_mlx(Later())):
        assert same(tree.double(by=3), mx.full(2, 3.0))
        assert (tree.size, tree.scale, tree.make()) == (2, 3, "made")
        assert same(fl.jit(type(tree).double)(tree), mx.full(2, 2.0))
    Later.double = lambda self: self.weight * 5
    assert same(fl.from_mlx(Later()).double(), mx.full(2, 5.0))
    with pytest.raises(AttributeError, match="nothing"):
        _ = trees[0].nothing


def wrapped():
    return fl.from_mlx(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)))


KINDS = (nn.Embedding, nn.Linear)
ASKING = {
    "a class": lambda path, layer: isinstance(layer, nn.Linear),
    "several": lambda path, layer: isinstance(layer, KINDS),
    "replacing": lambda path, layer: layer.freeze() if isinstance(layer, nn.Linear) else None,
}
IN_VAIN = "asks for instances of Linear, a class of MLX. No layer of a wrapped model is one, though some stand for one"


@pytest.mark.parametrize("name", ["a class", "several"])
def test_quantizing_by_a_class_of_mlx_is_warned_of(name):
    model = wrapped()
    with pytest.warns(UserWarning, match=IN_VAIN) as caught:
        assert fl.quantize(model, class_predicate=ASKING[name]) is model
    assert caught[0].filename == __file__
    chosen = fl.quantize(model, class_predicate=lambda path, layer: issubclass(layer.__mlx__, nn.Linear))
    assert chosen.layers[0].__mlx__ is nn.QuantizedLinear


def test_editing_layers_of_a_class_of_mlx_is_warned_of():
    model = wrapped()
    with pytest.warns(UserWarning, match=IN_VAIN):
        assert model.map_modules(ASKING["replacing"]) is model
    assert trained(model.map_modules(lambda p, k: k.freeze() if issubclass(k.__mlx__, nn.Linear) else None)) == []


@pytest.mark.parametrize("name", ["a class", "several"])
def test_a_predicate_of_arrays_that_asks_for_a_class_is_told_to_select_by_it(name):
    with pytest.raises(LookupError, match=r"which is called with arrays, .* select by it: at\(Linear\)"):
        wrapped().at(ASKING[name]).freeze()
    with pytest.raises(LookupError, match=r"selects nothing in this Sequential\.$"):
        fl.convert(wrapped()).at(ASKING[name]).freeze()
    with pytest.raises(LookupError, match=r"which is called with arrays, .* select by it: at\(Linear\)"):
        fl.nn.Linear(2, 2).at(lambda path, layer: isinstance(layer, fl.nn.Linear)).get()


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: model.map_modules(lambda p, k: None),
        lambda model: model.map_modules(lambda p, k: k.freeze() if isinstance(k, nn.Embedding) else None),
        lambda model: fl.quantize(model, class_predicate=lambda p, k: isinstance(k, nn.Embedding)),
        lambda model: fl.quantize(model, class_predicate=lambda p, k: p == "layers.0" or isinstance(k, nn.Linear)),
        lambda model: fl.convert(model).map_modules(ASKING["replacing"]),
        lambda model: fl.nn.Linear(2, 2).map_modules(lambda p, k: None if isinstance(k, fl.nn.Linear) else k),
    ],
    ids=["nothing asked", "none there", "none to quantize", "one selected", "all native", "a native class"],
)
def test_no_false_alarm_of_asking_in_vain(edit):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        edit(wrapped())


class Operators(nn.Module):
    """Has operators of its own."""

    def __init__(self, size):
        super().__init__()
        self.weight = mx.full((size,), size)

    def __add__(self, other):
        return self.weight.sum() + other.weight.sum()

    def __radd__(self, other):
        return other + self.weight

    def __matmul__(self, x):
        return self.weight @ x

    def __neg__(self):
        return -self.weight

    def __lt__(self, other):
        return len(self.weight) < len(other.weight)

    def added(self, other):
        return self + other


def test_operators_that_a_class_has():
    theirs = Operators(1), Operators(2)
    ours = [*map(fl.from_mlx, theirs)]

    def results(one, other):
        values = one + other, 2.0 + one, other @ mx.ones(2), -one, one.added(other)
        return one < other, other < one, sorted([other, one])[0] is one, [each.tolist() for each in values]

    assert results(*ours) == results(*theirs)
    with pytest.raises(TypeError, match="is a tree, and - is for arrays"):
        ours[0] - ours[1]
    with pytest.raises(TypeError, match="is a tree, and @ is for arrays"):
        fl.from_mlx(nn.Linear(2, 2)) @ mx.ones(2)
    with pytest.raises(TypeError, match="not supported between"):
        operator.lt(fl.from_mlx(nn.Linear(2, 2)), ours[0])


def packed_net():
    model = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64)))
    nn.quantize(model)
    return model


@pytest.mark.parametrize(("path", "of"), [("layers.0", ".at('layers.0')"), ("layers.1.layers.0", ".at('layers.1.layers.0')")])
def test_a_quantized_weight_that_was_unfrozen_has_no_gradient_as_in_mlx(path, of):
    x = mx.ones((1, 64))

    def loss(model):
        return model(x).sum()

    model = packed_net().freeze()
    tree = fl.from_mlx(model)
    model.unfreeze()
    with pytest.raises(RuntimeError, match="no gradient wrt the quantized weights"):
        mx.eval(nn.value_and_grad(model, loss)(model))
    unfrozen = tree.at(path).unfreeze()
    message = rf"no gradient for '{path}\.weight', a quantized weight, .* model{re.escape(of)}\.freeze\(\)"
    for take in (fl.grad(loss), lambda model: fl.vjp(loss, (model,), mx.array(1.0))):
        with pytest.raises(ValueError, match=message):
            take(unfrozen)
    again = unfrozen.at(path).freeze().unfreeze(keys="bias")
    assert fl.tree.equal(fl.grad(loss)(again), fl.grad(loss)(tree.unfreeze(keys="bias")))
    scales = tree.at(f"{path}.scales").unfreeze()
    assert trained(scales) == [f"{path}.scales"]
    fl.grad(loss)(scales)


class Headed(nn.Module):
    """Trains, saves and loads the head, and shows nothing else."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def __call__(self, x):
        return self.head(self.body(x))

    def parameters(self):
        return {"head": self.head.parameters()}

    def trainable_parameters(self):
        return {"head": self.head.trainable_parameters()}

    def leaf_modules(self):
        return {"head": self.head}

    def update(self, parameters, strict=True):
        return super().update(tree_map(lambda array: 2 * array, parameters), strict)


class Prefixed(nn.Linear):
    """Gives names of its own to what it saves."""

    def save_weights(self, file):
        mx.save_safetensors(file, {f"own.{name}": array for name, array in tree_flatten(self.parameters())})

    def load_weights(self, file, strict=True):
        return super().load_weights([(name[4:], array) for name, array in mx.load(file).items()], strict)


def test_methods_that_a_class_has_of_its_own_are_its_own_from_outside(tmp_path):
    model = Headed()
    with pytest.warns(
        UserWarning, match=r"Headed has a trainable_parameters\(\) of its own, without body.weight, body.bias, by"
    ):
        tree = fl.from_mlx(model)
    for name in ("parameters", "trainable_parameters", "leaf_modules"):
        assert list(getattr(tree, name)()) == ["head"]
    for each, file in ((model, "mlx"), (tree, "own")):
        each.save_weights(f"{tmp_path}/{file}.safetensors")
    saved, own = (mx.load(f"{tmp_path}/{file}.safetensors") for file in ("mlx", "own"))
    assert same(saved, own)
    after = tree.update({"head": {"bias": mx.ones(2)}})
    assert (after.head.bias.tolist(), after.body is tree.body) == ([2, 2], True)
    assert after.load_weights(f"{tmp_path}/own.safetensors").head.bias.tolist() == (2 * model.head.bias).tolist()
    model.body.freeze()
    gradient = fl.grad(lambda tree, x: tree(x).sum())(fl.from_mlx(model), mx.ones((3, 4)))
    assert gradient.body.weight is None


def test_files_with_names_that_a_class_makes(tmp_path):
    model, other, file = Prefixed(2, 3), Prefixed(2, 3), f"{tmp_path}/w.safetensors"
    fl.from_mlx(model).save_weights(file)
    assert sorted(mx.load(file)) == ["own.bias", "own.weight"]
    tree = fl.from_mlx(other)
    assert same(tree.load_weights(file).weight, model.weight)
    assert same(tree.weight, other.weight)
