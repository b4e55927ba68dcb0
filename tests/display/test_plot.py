"""The pictures of ``fl.plot``: what is drawn is compared with NumPy."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import frostleaf as fl


@pytest.fixture(autouse=True)
def _no_window():
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture
def model():
    return fl.nn.Sequential(fl.nn.Linear(64, 32), fl.nn.relu, fl.nn.Linear(32, 4))


class Deep(fl.Module):
    layers: tuple[fl.nn.Linear, ...]


def rows(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def counts(ax):
    """Return the bins of each row, as shares of the fullest."""
    found = []
    for patch in ax.patches:
        values, _, base = patch.get_data()
        found.append((base - values) / 0.9)
    return found


# Each picture of a tree and a copy of it.
PICTURES = {
    "histograms": lambda tree, **options: fl.plot.histograms(tree, **options),
    "norms": lambda tree, **options: fl.plot.norms([tree, tree], **options),
    "changes": lambda tree, **options: fl.plot.changes(tree, fl.tree.map(lambda leaf: leaf, tree), **options),
}
each_picture = pytest.mark.parametrize("name", PICTURES)


@each_picture
def test_a_call_makes_one_figure_and_returns_its_axes(name, model):
    ax = PICTURES[name](model)
    assert plt.get_fignums() == [ax.figure.number]
    ax.figure.canvas.draw()


@each_picture
def test_a_picture_goes_where_it_is_told(name, model):
    figure, (left, right) = plt.subplots(1, 2)
    assert PICTURES[name](model, ax=right) is right
    assert plt.get_fignums() == [figure.number]
    assert not left.has_data()
    with pytest.raises(TypeError, match="ax is one of matplotlib's Axes, and was given as"):
        PICTURES[name](model, ax=(left, right))


@each_picture
@pytest.mark.parametrize(
    "make",
    {
        "bfloat16": lambda model: model.astype(mx.bfloat16),
        "frozen": lambda model: model.freeze(),
        "quantized": lambda model: fl.quantize(model, group_size=32),
        "nan": lambda model: fl.tree.map(lambda leaf: leaf * mx.nan, model),
        "infinite": lambda model: model.at("layers.0.bias").apply(lambda bias: bias + mx.inf),
        "equal": lambda model: fl.tree.map(mx.ones_like, model),
        "zero": lambda model: fl.tree.map(mx.zeros_like, model),
        "huge": lambda model: fl.tree.map(lambda leaf: mx.full(leaf.shape, -3e38), model),
        "a dict": lambda model: model.parameters(),
        "one array": lambda model: model.layers[0].weight,
        "complex": lambda model: {"a": mx.array([1 + 2j, 3 - 4j])},
        "wrapped": lambda model: fl.from_mlx(nn.Linear(2, 2)),
        "empty arrays": lambda model: [mx.zeros((0, 3)), mx.ones(2)],
        "strange names": lambda model: {"_hidden": mx.ones(2), "$x^{$": mx.ones(3), "a" * 500: mx.ones(1)},
    }.values(),
)
def test_any_tree_is_drawn(name, make, model):
    PICTURES[name](make(model)).figure.canvas.draw()


@each_picture
def test_many_modules_are_gathered(name):
    ax = PICTURES[name](Deep([fl.nn.Linear(1, 1) for _ in range(8)]), rows=10)
    shown = legend(ax) if name == "norms" else rows(ax)
    assert shown == [f"layers.{index}" for index in range(8)]
    ax = PICTURES[name](Deep([fl.nn.Linear(1, 1) for _ in range(8)]), rows=3)
    shown = legend(ax) if name == "norms" else rows(ax)
    assert shown == ["layers.(0-2)", "layers.(3-5)", "layers.(6-7)"]
    ax = PICTURES[name](Deep([fl.nn.Linear(1, 1) for _ in range(300)]), rows=12)
    assert len(ax.lines if name == "norms" else rows(ax)) == 12
    ax = PICTURES[name]([mx.array(1.0)] * 300, rows=5)
    shown = legend(ax) if name == "norms" else rows(ax)
    assert shown == ["(0-59)", "(60-119)", "(120-179)", "(180-239)", "(240-299)"]
    ax = PICTURES[name]({f"w{number}": mx.array(1.0) for number in range(300)}, rows=5)
    shown = legend(ax) if name == "norms" else rows(ax)
    assert shown == ["w0", "w1", "w2", "w3", "296 more"]


@each_picture
def test_a_legend_can_be_made_again(name, model):
    model = {"_private": model.freeze(), "more": mx.ones(2)}
    ax = PICTURES[name](model, rows=2)
    before = legend(ax)
    ax.legend(loc="lower left")
    assert sorted(text.strip("\u200b") for text in legend(ax)) == sorted(before)


@each_picture
def test_what_is_drawn_is_selected(name, model):
    ax = PICTURES[name](model, where="**.bias")
    shown = legend(ax) if name == "norms" else rows(ax)
    assert shown == ["layers.0.bias", "layers.2.bias"]
    with pytest.raises(ValueError, match="selects no array"):
        PICTURES[name](model, where="layers.0.wieght")


@each_picture
def test_what_can_not_be_drawn_is_refused(name, model):
    with pytest.raises(ValueError, match=f"fl.plot.{name} draws floating-point arrays, and .* has none"):
        PICTURES[name]({"a": mx.array([1, 2])})
    with pytest.raises(TypeError, match=f"fl.plot.{name}"):
        PICTURES[name](fl.eval_shape(lambda: fl.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="at least 1"):
        PICTURES[name](model, rows=0)
    with pytest.raises(TypeError, match="rows is a whole number"):
        PICTURES[name](model, rows=2.0)


def test_a_histogram_is_that_of_numpy(model):
    weights = [model.layers[0].weight, model.layers[2].weight]
    both = np.concatenate([np.array(each).ravel() for each in weights])
    for drawn, weight in zip(counts(fl.plot.histograms(model, "**.weight")), weights, strict=True):
        expected, _ = np.histogram(np.array(weight), bins=80, range=(both.min(), both.max()))
        # A number on an edge may fall on either side of it.
        assert np.abs(drawn * expected.max() - expected).sum() <= 4


def test_quantized_weights_are_shown_as_what_they_stand_for(model):
    small = fl.quantize(model, group_size=32)
    layer = small.layers[0]
    meant = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=32, bits=4)
    (drawn,), (expected,) = (
        counts(fl.plot.histograms(each, "layers.0.weight")) for each in (small, {"layers": [{"weight": meant}]})
    )
    np.testing.assert_array_equal(drawn, expected)
    assert rows(fl.plot.histograms(small)) == fl.tree.paths(model)


def test_numbers_that_are_not_finite_are_counted():
    ax = fl.plot.histograms({"a": mx.array([1.0, mx.nan, mx.inf]), "b": mx.array([0.0, 1.0])})
    assert rows(ax) == ["a (2 not finite)", "b"]


def test_what_is_not_trained_has_another_color(model):
    ax = fl.plot.histograms(model.at("layers.0").freeze())
    colors = [patch.get_facecolor() for patch in ax.patches]
    assert colors[0] == colors[1] != colors[2] == colors[3]
    assert legend(ax) == ["trained", "not trained"]
    assert fl.plot.histograms(model).get_legend() is None


def test_norms_are_those_of_numpy(model):
    models = [fl.tree.map(lambda leaf, step=step: leaf * step, model) for step in range(1, 5)]
    ax = fl.plot.norms(models, rows=2)
    assert legend(ax) == ["layers.0", "layers.2"]
    for line, layer in zip(ax.lines, (model.layers[0], model.layers[2]), strict=True):
        norm = np.sqrt(sum(np.square(np.array(leaf)).sum() for leaf in fl.tree.leaves(layer)))
        np.testing.assert_allclose(line.get_ydata(), norm * np.arange(1, 5), rtol=1e-5)


def test_steps_are_whole_numbers(model):
    ax = fl.plot.norms([model] * 3)
    ax.figure.canvas.draw()
    assert all(tick == int(tick) for tick in ax.get_xticks())


def test_norms_of_norms_are_the_norms(model):
    whole, of_norms = fl.plot.norms([model], rows=2), fl.plot.norms([fl.tree.map(mx.linalg.norm, model)], rows=2)
    for line, other in zip(whole.lines, of_norms.lines, strict=True):
        np.testing.assert_allclose(line.get_ydata(), other.get_ydata(), rtol=1e-6)


def test_gradients_of_a_frozen_model_are_drawn(model):
    grads = fl.grad(lambda model: model(mx.ones((1, 64))).sum())(model.at("layers.0").freeze())
    assert legend(fl.plot.norms([grads])) == ["layers.2.weight", "layers.2.bias"]


def test_a_norm_says_from_which_step_it_is_not_finite():
    steps = [{"a": mx.array([2.0]), "b": mx.array([mx.nan if step == 2 else 1.0])} for step in range(4)]
    assert legend(fl.plot.norms(steps)) == ["a", "b (not finite from step 2)"]


@pytest.mark.parametrize(
    ("trees", "error", "message"),
    [
        ([], ValueError, "was given none"),
        ({"a": mx.ones(2)}, TypeError, "draws a list of trees, one for each step, and was given"),
        ([{"a": mx.ones(2)}, {"b": mx.ones(2)}], ValueError, "tree 2 has not the same .* differ at a, b"),
        ([{"a": mx.ones(2)}, {"a": mx.ones(3)}], ValueError, "tree 2 has not the same .* differ at a"),
    ],
)
def test_norms_are_of_a_list_of_like_trees(trees, error, message):
    with pytest.raises(error, match=message):
        fl.plot.norms(trees)


def test_changes_are_those_of_numpy(model):
    half = model.astype(mx.float16)
    ax = fl.plot.changes(model, half)
    positions = ax.collections[0].get_offsets()
    for (change, row), before, after in zip(positions, fl.tree.leaves(model), fl.tree.leaves(half), strict=True):
        a, b = np.array(before), np.array(after.astype(mx.float32))
        np.testing.assert_allclose(change, np.linalg.norm(b - a) / np.linalg.norm(a), rtol=1e-4)
        assert rows(ax)[int(row)] == fl.tree.paths(model)[int(row)]


def test_unchanged_arrays_are_at_zero_and_overflow_is_at_the_edge():
    before = {"same": mx.zeros(3), "born": mx.zeros(3), "large": mx.array([1e6]), "near": mx.array([1.0])}
    after = {**before, "born": mx.ones(3), "large": before["large"].astype(mx.float16), "near": mx.array([1.5])}
    points, edge = fl.plot.changes(before, after).collections
    assert points.get_offsets().tolist() == [[0.0, 0], [0.5, 3]]
    assert edge.get_offsets().tolist() == [[1.0, 1], [1.0, 2]]


def test_changes_are_named_by_dtype_or_by_labels(model):
    copies = [model.astype(mx.float16), fl.quantize(model, group_size=32)]
    assert legend(fl.plot.changes(model, *copies)) == ["float16", "4 bits, float32"]
    assert legend(fl.plot.changes(model, *copies, labels=["half", "_small"])) == ["half", "_small"]
    assert legend(fl.plot.changes(model, model, copies[1], model)) == [
        "tree 2, float32",
        "tree 3, 4 bits, float32",
        "tree 4, float32",
    ]
    with pytest.raises(ValueError, match="a name for each tree after the first, here 2, and was given 1"):
        fl.plot.changes(model, *copies, labels=["half"])
    with pytest.raises(ValueError, match="give at least one after the first"):
        fl.plot.changes(model)


def test_matplotlib_is_imported_when_something_is_drawn():
    program = """
import sys
import frostleaf as fl
fl.plot.histograms
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = None
try:
    fl.plot.histograms(fl.nn.Linear(2, 2))
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip().endswith('pip install "frostleaf[notebook]"')


@pytest.mark.parametrize("draw", [lambda trees: fl.plot.changes(*trees), fl.plot.norms], ids=["changes", "norms"])
def test_a_few_arrays_are_computed_at_a_time(draw):
    trees = [[mx.full(2**18, number + 1, mx.float16) for number in range(16)] for _ in range(2)]
    mx.eval(trees)
    mx.reset_peak_memory()
    least = mx.get_active_memory()
    draw(trees)
    assert mx.get_peak_memory() - least < 10 * 2**20
