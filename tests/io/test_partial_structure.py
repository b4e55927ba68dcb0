"""Modules that are read whole, by whatever selection: what they are besides their arrays is compared, or reported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import llama

import frostleaf as fl


class Net(fl.Module):
    encoder: fl.nn.TransformerEncoder
    norm: fl.nn.RMSNorm
    head: fl.nn.Linear
    rate: float = 0.5


def net(heads: int = 2, eps: float = 1e-5, classes: int = 3) -> Net:
    encoder = fl.nn.TransformerEncoder(1, 4, heads, mlp_dims=4)
    return Net(encoder, fl.nn.RMSNorm(4, eps=eps), fl.nn.Linear(4, classes))


def wrapped(**changed: Any) -> Any:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9, "num_attention_heads": 2}
    return fl.from_mlx(llama.Model(llama.ModelArgs(model_type="llama", **{"rms_norm_eps": 1e-5, **sizes, **changed})))


def of_encoder(path: str, array: Any) -> bool:
    return path.startswith("encoder")


WHOLE = [
    "encoder",
    "encoder.**",
    "**",
    of_encoder,
    ["encoder.ln.**", "encoder.layers.**"],
    "encoder.*",
    lambda path, array: True,
]


def saved(tree: Any, folder: Path) -> Path:
    fl.save(folder / "a.safetensors", tree)
    return folder / "a.safetensors"


@pytest.mark.parametrize("where", WHOLE)
@pytest.mark.parametrize(
    ("model", "change", "line"),
    [
        (net(4), lambda like: like, "encoder.layers.0.attention.num_heads (static): 4 in the file, 2 in like"),
        (net(), lambda like: like.eval(), "mode): training in the file, evaluation in like"),
        (net(), lambda like: like.at("encoder.ln").freeze(), "encoder.ln (frozen): nothing in the file, bias, weight in like"),
        (
            net().at("encoder.layers.0.activation").set(mx.tanh),
            lambda like: like,
            "encoder.layers.0.activation: mlx.core.tanh in the file, mlx.nn.relu in like",
        ),
    ],
)
def test_a_module_that_is_selected_whole_must_be_alike(where: Any, model: Any, change: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(fl.OtherStructureError, match=re.escape(line)):
        fl.load(saved(model, tmp_path), change(net()), where=where)
    assert fl.load(saved(model, tmp_path), model, where=where) is not model


@pytest.mark.parametrize("where", ["model.**", "**", lambda path, array: "layers" in path])
def test_so_must_one_of_a_wrapped_model(where: Any, tmp_path: Path) -> None:
    with pytest.raises(fl.OtherStructureError, match=r"self_attn.rope.base|args.rope_theta"):
        fl.load(saved(wrapped(), tmp_path), wrapped(rope_theta=500.0), where=where)


def test_a_layer_of_a_model_with_fewer_is_read_as_is_said(tmp_path: Path) -> None:
    model, like = wrapped(), wrapped(num_hidden_layers=2)
    with pytest.raises(fl.OtherStructureError, match=r"args\.num_hidden_layers.*\n(.*\n)*.*strict=False is right") as error:
        fl.load(saved(model, tmp_path), like, where="model.layers.0")
    assert ".set(" not in str(error.value)
    loaded, report = fl.load(tmp_path / "a.safetensors", like, where="model.layers.0", strict=False)
    assert fl.tree.equal(fl.tree.leaves(loaded.model.layers[0]), fl.tree.leaves(model.model.layers[0]))
    assert loaded.model.layers[1] is like.model.layers[1]
    assert report.differs == ("model.layers.0.args",)


@pytest.mark.parametrize("where", ["a", "a.**", "**", lambda path, array: True])
@pytest.mark.parametrize("bias", [False, True])
def test_what_only_one_of_two_modules_has_is_told(where: Any, bias: bool, tmp_path: Path) -> None:
    tree, like = [{"a": fl.nn.Linear(2, 2, bias=each), "n": 1} for each in (bias, not bias)]
    told = ("array f32[2] in the file, None in like", "None in the file, array f32[2] in like")[not bias]
    with pytest.raises(fl.OtherStructureError, match=re.escape(f"a.bias: {told}")):
        fl.load(saved(tree, tmp_path), like, where=where)
    loaded = fl.load(saved(tree, tmp_path), like, where="a.weight")
    assert fl.tree.equal(loaded["a"].weight, tree["a"].weight)


@pytest.mark.parametrize(
    ("where", "model"),
    [
        ("head.**", net(4, 1e-3)),
        ("**.weight", net().at("encoder.ln").apply(lambda norm: norm.eval())),
        ("encoder.layers.*.attention.query_proj.**", net(4)),
        (lambda path, array: path.startswith("head"), net(4, 1e-3)),
        (["head.**", "norm.**"], net(4)),
        ("encoder.**", net(2, 1e-3, 5)),
        (fl.nn.Linear, net(2, 1e-3)),
    ],
)
def test_one_of_which_a_part_is_selected_need_not_be(where: Any, model: Net, tmp_path: Path) -> None:
    loaded = fl.load(saved(model, tmp_path), net(), where=where)
    assert fl.tree.structure(loaded) == fl.tree.structure(net())


def test_a_module_of_one_array_is_whole_with_it(tmp_path: Path) -> None:
    with pytest.raises(fl.OtherStructureError, match=r"norm.eps \(static\): 0.001 in the file, 1e-05 in like"):
        fl.load(saved(net(eps=1e-3), tmp_path), net(), where="**.weight")


class Encoder(fl.Module):
    encoder: fl.nn.Linear
    scale: float = fl.static(default=1.0)


class Pair(fl.Module):
    encoder: fl.nn.Linear
    head: fl.nn.Linear


@pytest.mark.parametrize("where", ["encoder.**", "encoder", "encoder.*"])
@pytest.mark.parametrize("root", [Encoder, lambda encoder: {"encoder": encoder}])
def test_what_holds_it_in_a_larger_tree_is_not_compared(where: Any, root: Any, tmp_path: Path) -> None:
    pair = Pair(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2))
    loaded = fl.load(saved(pair, tmp_path), root(fl.nn.Linear(2, 2)), where=where)
    assert fl.tree.equal(fl.tree.leaves(loaded), fl.tree.leaves(pair.encoder))


def test_layers_that_only_the_file_has_are_told_of_a_function_too(tmp_path: Path) -> None:
    tree = {"encoder": fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)), "head": fl.nn.Linear(2, 2)}
    like = {**tree, "encoder": fl.nn.Sequential(fl.nn.Linear(2, 2))}
    with pytest.raises(fl.OtherStructureError, match=r"encoder\.layers: tuple of 2 in the file, tuple of 1 in like"):
        fl.load(saved(tree, tmp_path), like, where=of_encoder)


def adapted(scale: float) -> Any:
    return fl.lora(fl.nn.Sequential(fl.nn.Linear(2, 2)), "layers.*", scale=scale)


@pytest.mark.parametrize(
    ("tree", "like", "differs"),
    [
        (net(4), net(), ("encoder.layers.0.attention.num_heads",)),
        ({"a": net(eps=0.5), "n": 1}, {"a": net(), "n": 1}, ("a.norm.eps",)),
        (
            fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.ReLU()),
            fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Tanh()),
            ("layers.1",),
        ),
        (adapted(20.0), adapted(10.0), ("layers.0.scale",)),
        (net().at("encoder.layers.0.activation").set(mx.tanh), net(), ("encoder.layers.0.activation",)),
        (Encoder(fl.nn.Linear(2, 2)), Pair(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)), ("", "scale")),
        (net(), net().eval().freeze(), ("(root) (mode)", "(root) (frozen)")),
        ([fl.nn.Linear(2, 2)], [fl.nn.Linear(2, 2), fl.nn.RMSNorm(2)], ()),
    ],
)
def test_the_report_names_what_differs(tree: Any, like: Any, differs: tuple[str, ...], tmp_path: Path) -> None:
    loaded, report = fl.load(saved(tree, tmp_path), like, strict=False)
    assert sorted(report.differs) == sorted(differs)
    assert ("differ" in repr(report)) == bool(differs)
    assert fl.tree.structure(loaded) == fl.tree.structure(like)


def test_the_report_is_of_what_was_selected(tmp_path: Path) -> None:
    file = saved(net(4, 1e-3), tmp_path)
    assert fl.load(file, net(), where="norm.**", strict=False)[1].differs == ("norm.eps",)
    assert fl.load(file, net(), where="head", strict=False)[1].differs == ()


def test_a_checkpointer_reports_it_too(tmp_path: Path) -> None:
    with fl.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, net(4))
        _, _, report = checkpoints.restore(net(), strict=False)
    assert report.differs == ("encoder.layers.0.attention.num_heads",)
    assert repr(report).endswith("0 left; 0 new; 1 differs: 'encoder.layers.0.attention.num_heads')")


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("where", [None, "**", "encoder.layers.0", "norm", ["norm", "head"], "encoder.**"])
@pytest.mark.parametrize("around", ["like", "{'run': [like], 'n': 1}"])
def test_what_is_said_of_modes_switches_them(around: str, where: Any, evaluated: bool, tmp_path: Path) -> None:
    if where is not None and around != "like":
        where = [f"run.0.{each}" for each in ([where] if isinstance(where, str) else where)]
    tree, like = (eval(around, {"like": net().train(mode)}) for mode in (not evaluated, evaluated))
    file = saved(tree, tmp_path)
    for _ in range(2):  # one module after the other
        with pytest.raises(fl.OtherStructureError) as error:
            fl.load(file, like, where=where)
        code = str(error.value).rpartition("\nFor the mode of the file give ")[2].partition(" there")[0]
        new = eval(code, {"like": like})
        like = new if around == "like" else {"run": [new], "n": 1}
        if "and so at 1 more" not in str(error.value):
            break
    assert fl.tree.structure(fl.load(file, like, where=where)) == fl.tree.structure(like)
