"""Modules of other packages, with random weights, where the packages are installed."""

import inspect

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop.checks import close, same

import frostleaf as fl


@pytest.mark.parametrize("name", ["GCNConv", "GATConv", "GATv2Conv", "SAGEConv", "GINConv", "SimpleConv"])
def test_graphs(name):
    layers = pytest.importorskip("mlx_graphs.nn")

    def build():
        mx.random.seed(0)
        args = {"GINConv": (nn.Linear(4, 3),), "SimpleConv": ()}.get(name, (4, 3))
        return getattr(layers, name)(*args)

    edges = mx.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
    x = mx.random.normal((5, 4))
    model, tree = build(), fl.from_mlx(build())
    expected = model(edges, x)
    for each in (tree, fl.convert(tree), fl.to_mlx(tree), tree):
        assert same(each(edges, x), expected)
    assert close(fl.jit(tree)(edges, x), expected)
    assert fl.tree.structure(tree) == fl.tree.structure(fl.from_mlx(build()))


@pytest.mark.parametrize("name", ["bert", "modernbert", "xlm_roberta"])
def test_embeddings(name):
    try:
        module = pytest.importorskip(f"mlx_embeddings.models.{name}")
    except ImportError as error:
        pytest.skip(str(error))
    sizes = {
        "model_type": name, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 32, "num_attention_heads": 2,
        "max_position_embeddings": 32, "vocab_size": 50, "local_attention": 8, "global_attn_every_n_layers": 3,
    }  # fmt: skip
    known = inspect.signature(module.ModelArgs).parameters
    args = module.ModelArgs(**{key: value for key, value in sizes.items() if key in known})
    mx.random.seed(0)
    model = module.Model(args).eval()
    tree = fl.from_mlx(model)
    x, mask = mx.array([[1, 2, 3]]), mx.ones((1, 3))
    expected = model(x, attention_mask=mask)
    for each in (tree, fl.convert(tree), fl.to_mlx(tree), tree):
        out = each(x, attention_mask=mask)
        assert type(out) is type(expected)
        assert same(out.text_embeds, expected.text_embeds)
    out = fl.jit(lambda tree, x, mask: tree(x, attention_mask=mask))(tree, x, mask)
    assert close(out.text_embeds, expected.text_embeds)
