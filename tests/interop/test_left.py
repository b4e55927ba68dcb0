"""An attribute that a call of original code changed is read from the tree as it was: that is told, and where the new one is."""

import re
import warnings

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop.checks import same

import frostleaf as fl

X = mx.ones((2, 3))


class Layer(nn.Module):
    """Leaves a loss beside its result."""

    def __init__(self, aux):
        super().__init__()
        self.lin, self.size, self.aux, self._aux = nn.Linear(3, 3), 3, aux, aux

    def __call__(self, x):
        y = self.lin(x)
        self.aux = self._aux = (y**2).mean()
        return y

    @property
    def loss(self):
        return self.aux


class InDict(nn.Module):
    """Leaves it in a dict."""

    def __init__(self, aux):
        super().__init__()
        self.lin, self.aux = nn.Linear(3, 3), {"aux": aux}

    def __call__(self, x):
        y = self.lin(x)
        self.aux["aux"] = (y**2).mean()
        return y


class Net(nn.Module):
    """Has such layers."""

    def __init__(self, kind, aux):
        super().__init__()
        self.blocks = [kind(aux), kind(aux)]

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


READ = {
    "public": (Layer, lambda model: sum(block.aux for block in model.blocks)),
    "private": (Layer, lambda model: sum(block._aux for block in model.blocks)),
    "by its key": (Layer, lambda model: sum(getattr(block, "aux") for block in model.blocks)),  # noqa: B009
    "in a dict": (InDict, lambda model: sum(block.aux["aux"] for block in model.blocks)),
}
WAYS = r".* fl\.stateful\(model, x\).* fl\.recorded\(model\)"
VALUES = [0.0, mx.array(0.0)]


@pytest.mark.parametrize(("kind", "read"), READ.values(), ids=READ)
@pytest.mark.parametrize("aux", VALUES)
def test_what_a_call_changed_is_read_as_the_message_says(kind, read, aux):
    model = Net(kind, aux)
    tree = fl.from_mlx(model)
    expected = model(X).mean() + read(model)

    def old(tree, x):
        return tree(x).mean() + read(tree)

    def of_stateful(tree, x):
        y, tree = fl.stateful(tree, x)
        return y.mean() + read(tree)

    def of_recorded(tree, x):
        y = tree(x).mean()
        return y + read(fl.recorded(tree))

    start = f"{kind.__name__}.{'_aux' if read is READ['private'][1] else 'aux'} is read as it was before"
    for transformed in (fl.value_and_grad, fl.jit):
        with pytest.warns(fl.UncollectedStateWarning, match=re.escape(start) + WAYS):
            transformed(lambda tree, x: fl.stateful(old, tree, x)[0])(tree, X)
    is_silent = kind is Layer and (isinstance(aux, mx.array) or "_aux" in start)
    said = start if is_silent else "Net.__call__ changed blocks.0.aux"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.UncollectedStateWarning)
        with pytest.warns(fl.UncollectedStateWarning, match=re.escape(said)):
            old(tree, X)
    again = fl.from_mlx(model)
    assert same(fl.value_and_grad(of_stateful)(again, X)[0], expected)
    assert same(fl.value_and_grad(lambda tree: fl.stateful(of_recorded, tree, X)[0])(again)[0], expected)
    assert same(fl.stateful(of_recorded, again, X)[0], expected)


def test_a_property_that_reads_what_a_call_changed():
    tree = fl.from_mlx(Net(Layer, 0.0))

    def old(tree, x):
        y = tree(x)
        return y, tree.blocks[0].loss

    with pytest.warns(fl.UncollectedStateWarning, match=r"^Layer\.aux is read as it was before Net\.__call__"):
        fl.stateful(old, tree, X)

    def own(block, x):
        return block(x), block.loss

    assert fl.stateful(own, tree.blocks[0], X)[0][1].item() > 0


def test_what_no_call_changed_is_read_in_silence():
    tree = fl.from_mlx(Net(Layer, mx.array(0.0)))

    def function(tree, x):
        before = [block.aux for block in tree.blocks]
        y, after = fl.stateful(tree, x)
        return y, before, [block.aux for block in tree.blocks], [block.aux for block in after.blocks]

    fl.stateful(function, tree, X)
    _, after = fl.stateful(tree, X)
    assert [block.aux.item() for block in (*tree.blocks, *after.blocks)][:2] == [0, 0]

    def others(tree, x):
        tree(x)
        return tree.blocks[0].size, tree.blocks[0].lin.weight

    fl.stateful(others, tree, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.UncollectedStateWarning)
        tree(X)
    repr(tree), fl.tree.leaves(tree), tree.parameters()
