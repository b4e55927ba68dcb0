import mlx.core as mx
import pytest

import frostleaf as fl

X = mx.array([[0.0, 2.0], [2.0, 4.0]])


@pytest.mark.parametrize(("groups", "dims"), [(3, 4), (4, 6), (4, 2)])
def test_groups_that_do_not_divide(groups, dims):
    with pytest.raises(ValueError, match=f"can't divide {dims} channels into {groups} groups: dims must be a multiple"):
        fl.nn.GroupNorm(groups, dims)


@pytest.mark.parametrize(
    ("layer", "shape", "takes"),
    [
        (fl.nn.GroupNorm(2, 4), (3, 2), "GroupNorm takes an input of shape [N, ..., 4]"),
        (fl.nn.GroupNorm(2, 4), (4,), "[N, ..., 4]"),
        (fl.nn.GroupNorm(2, 4, affine=False, pytorch_compatible=True), (3, 5, 2), "[N, ..., 4]"),
        (fl.nn.InstanceNorm(4), (3, 2, 2), "InstanceNorm takes an input of shape [N, L, 4], [N, H, W, 4] or with more axes"),
        (fl.nn.InstanceNorm(4, affine=True), (3, 4), "[N, L, 4], [N, H, W, 4] or with more axes"),
    ],
)
def test_input_that_does_not_fit(layer, shape, takes):
    with pytest.raises(ValueError, match="takes an input") as error:
        layer(mx.zeros(shape))
    assert takes in str(error.value)
    assert f"and was given f32[{','.join(map(str, shape))}]" in str(error.value)


@pytest.mark.parametrize(
    "layer",
    [fl.nn.GroupNorm(2, 4), fl.nn.GroupNorm(2, 4, pytorch_compatible=True), fl.nn.InstanceNorm(4, affine=True)],
    ids=["group", "group of PyTorch", "instance"],
)
@pytest.mark.parametrize("shape", [(0, 3, 4), (0, 2, 3, 4), (2, 0, 4)])  # MLX can't reshape the first two
def test_no_batch_and_no_places(layer, shape):
    assert layer(mx.zeros(shape)).shape == shape
    assert fl.grad(lambda layer, x: layer(x).sum())(layer, mx.zeros(shape)).weight.tolist() == [0, 0, 0, 0]


def test_groups_as_in_layer_and_instance_norm():
    x = mx.random.normal((2, 3, 3, 4), key=mx.random.key(0))
    instance = fl.nn.InstanceNorm(4)(x)
    whole = fl.nn.LayerNorm(36, affine=False)(x.reshape(2, 36)).reshape(x.shape)
    for compatible in False, True:
        assert mx.allclose(fl.nn.GroupNorm(4, 4, pytorch_compatible=compatible)(x), instance, atol=1e-5)
        assert mx.allclose(fl.nn.GroupNorm(1, 4, pytorch_compatible=compatible)(x), whole, atol=1e-5)


def test_layer_norm_keeps_no_bias_without_weight():
    assert fl.tree.leaves(fl.nn.LayerNorm(2, affine=False, bias=True)) == []
    assert fl.tree.paths(fl.nn.LayerNorm(2, bias=False)) == ["weight"]


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_a_plain_call_changes_nothing():
    norm = fl.nn.BatchNorm(2)
    leaves = fl.tree.leaves(norm)
    norm(X)
    assert all(new is old for new, old in zip(fl.tree.leaves(norm), leaves, strict=True))
    assert norm.running_mean.tolist() == [0, 0]


def test_statistics_are_buffers():
    norm = fl.nn.BatchNorm(2)
    assert fl.tree.paths(norm) == ["weight", "bias", "running_mean", "running_var"]
    assert list(norm.unfreeze().trainable_parameters()) == ["weight", "bias"]


def test_evaluation_uses_and_keeps_the_running_statistics():
    _, norm = fl.stateful(fl.nn.BatchNorm(2, momentum=1.0), X)
    norm = norm.eval()
    out, after = fl.stateful(norm, mx.array([[1.0, 3.0]]))
    assert after is norm
    assert out.tolist() == [[0, 0]]
    assert norm.running_var.tolist() == [2, 2]


def test_two_calls_in_one_pass_both_count():
    class Twice(fl.Module):
        norm: fl.nn.BatchNorm

        def __call__(self, x):
            return self.norm(self.norm(x) + 1)

    model = Twice(fl.nn.BatchNorm(2, momentum=0.5))
    _, after = fl.stateful(model, X)
    # The first call sees means 1 and 3, the second 1 and 1.
    assert mx.allclose(after.norm.running_mean, mx.array([0.75, 1.25]))


def test_without_running_statistics_evaluation_is_like_training():
    norm = fl.nn.BatchNorm(2, track_running_stats=False)
    assert fl.tree.paths(norm) == ["weight", "bias"]
    assert mx.array_equal(norm(X), norm.eval()(X))
    assert fl.stateful(norm, X)[1] is norm


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_statistics_can_be_switched_off_later():
    _, norm = fl.stateful(fl.nn.BatchNorm(2), X)
    off = norm.replace(track_running_stats=False)
    assert mx.array_equal(off.eval()(X), norm(X))
    assert fl.stateful(off, X)[1] is off


def test_one_value_per_channel():
    norm = fl.nn.BatchNorm(2)
    with pytest.raises(ValueError, match=r"BatchNorm was given f32\[1,1,2\], one value per channel.*model\.eval\(\)"):
        norm(mx.ones((1, 1, 2)))
    assert norm.eval()(mx.ones((1, 1, 2))).shape == (1, 1, 2)


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_weight_without_bias():
    norm = fl.nn.BatchNorm(2)
    assert mx.array_equal(norm.replace(bias=None, weight=mx.full(2, 3.0))(X), 3 * norm(X))
