"""Shapes are leaves: what was never built is measured, selected and edited as a model is."""

import mlx.core as mx
import pytest

import frostleaf as fl


def build() -> fl.nn.Sequential:
    return fl.nn.Sequential(fl.nn.Linear(64, 32), fl.nn.BatchNorm(32), fl.nn.Linear(32, 64))


SKELETON, MODEL = fl.eval_shape(build), build()
S = fl.ShapeDtypeStruct


def test_a_skeleton_has_the_structure_of_the_model() -> None:
    assert fl.tree.structure(SKELETON) == fl.tree.structure(MODEL)
    assert fl.tree.paths(SKELETON) == fl.tree.paths(MODEL)
    assert fl.tree.size(SKELETON) == fl.tree.size(MODEL)
    assert fl.tree.nbytes(SKELETON) == fl.tree.nbytes(MODEL)
    assert all(isinstance(leaf, S) for leaf in fl.tree.leaves(SKELETON))
    assert repr(SKELETON) == repr(MODEL)


def test_a_skeleton_is_edited_as_a_model_is() -> None:
    assert SKELETON.astype(mx.bfloat16).layers[0].weight == S((32, 64), mx.bfloat16)
    assert SKELETON.at("**.bias").paths() == MODEL.at("**.bias").paths()
    assert repr(SKELETON.freeze().eval()) == repr(MODEL.freeze().eval())
    assert list(SKELETON.freeze(keys="bias").trainable_parameters()["layers"][0]) == ["weight"]
    assert SKELETON.parameters()["layers"][0]["weight"] == S((32, 64))
    halved = fl.tree.map(lambda leaf: S(leaf.shape[1:], leaf.dtype), SKELETON)
    assert halved.layers[0].weight == S((64,))
    assert SKELETON.update({"layers": [{"bias": mx.ones(32)}]}).layers[0].bias.tolist() == [1.0] * 32
    assert fl.tree.equal(SKELETON, fl.eval_shape(build))
    assert not fl.tree.equal(SKELETON, MODEL)
    assert not fl.tree.equal(SKELETON, SKELETON.astype(mx.float16))
    assert fl.tree.allclose(SKELETON, SKELETON)
    assert not fl.tree.allclose(SKELETON, MODEL)
    assert repr(fl.tree.diff(S((2,)), S((3,)))) == "(root): shape f32[2] -> f32[3]"


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8"])
def test_a_skeleton_is_quantized(mode: str) -> None:
    quantized = fl.quantize(SKELETON, 32, mode=mode)
    expected = fl.quantize(MODEL, 32, mode=mode)
    assert fl.tree.structure(quantized) == fl.tree.structure(expected)
    assert repr(quantized) == repr(expected)


COMPUTING = {
    "jit": lambda m: fl.jit(lambda m: m)(m),
    "save": lambda m: fl.save("nowhere", m),
}


@pytest.mark.parametrize("function", COMPUTING.values(), ids=COMPUTING)
def test_a_skeleton_has_no_numbers(function) -> None:
    with pytest.raises(TypeError, match=r"layers\.0\.weight is a ShapeDtypeStruct, f32\[32,64\], and has no numbers"):
        function(SKELETON)
