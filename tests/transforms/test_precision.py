"""Mixed precision: which dtype computes, and that it learns as well."""

import copy
import functools
import pickle

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf import optim
from frostleaf.core import fields
from frostleaf.core.words import describe

NOT_FLOATING = "{name} of fl.Policy must be a floating-point mx.Dtype, such as mx.bfloat16, and is {given}"

DTYPES = [mx.float32, mx.float16, mx.bfloat16]


class Net(fl.Module):
    first: fl.nn.Linear
    last: fl.nn.Linear

    def __init__(self, inputs, hidden, outputs):
        self.first = fl.nn.Linear(inputs, hidden, key=mx.random.key(0))
        self.last = fl.nn.Linear(hidden, outputs, key=mx.random.key(1))

    def __call__(self, x):
        return self.last(fl.nn.relu(self.first(x)))


@pytest.mark.parametrize("param", DTYPES, ids=str)
@pytest.mark.parametrize("compute", DTYPES, ids=str)
@pytest.mark.parametrize("output", DTYPES, ids=str)
def test_parameters_computation_and_results_have_their_dtypes(param, compute, output):
    policy = fl.Policy(param_dtype=param, compute_dtype=compute, output_dtype=output)
    seen = []

    def loss_fn(model, x, *, labels):
        logits = model(x)
        seen.append((model.first.weight.dtype, x.dtype, labels.dtype, logits.dtype))
        return fl.nn.losses.cross_entropy(logits, labels, reduction="mean"), {"logits": logits, "count": mx.array(4)}

    model = policy.cast_to_param(Net(3, 4, 2))
    x, labels = mx.ones((4, 3)), mx.array([0, 1, 0, 1])
    (loss, aux), grads = fl.value_and_grad(policy.wrap(loss_fn), has_aux=True)(model, x, labels=labels)
    assert seen == [(compute, compute, mx.int32, compute)]
    assert (loss.dtype, aux["logits"].dtype, aux["count"].dtype) == (output, output, mx.int32)
    assert {leaf.dtype for leaf in fl.tree.leaves(grads)} == {param}
    opt = optim.AdamW(0.1)
    after, state = opt.update(model, grads, opt.init(model))
    assert {leaf.dtype for leaf in fl.tree.leaves(after)} == {param}
    assert {slot.dtype for slots in state.slots.values() for slot in slots.values()} == {param}


@pytest.mark.parametrize("compute", DTYPES, ids=str)
def test_it_is_the_model_cast_by_hand(compute):
    def loss_fn(model, x):
        return (model(x) ** 2).mean()

    model, x = Net(3, 4, 2), mx.random.normal((5, 3), key=mx.random.key(2))
    loss, grads = fl.value_and_grad(fl.Policy(compute_dtype=compute).wrap(loss_fn))(model, x)
    half = model.astype(compute)
    expected, gradients = fl.value_and_grad(loss_fn)(half, x.astype(compute))
    assert mx.array_equal(loss, expected.astype(mx.float32))
    assert fl.tree.equal(grads, gradients.astype(mx.float32))


def test_nothing_given_changes_and_what_has_the_dtype_is_the_same_object():
    model, x = Net(3, 4, 2), mx.ones((1, 3), mx.bfloat16)
    leaves = [(leaf, leaf.dtype) for leaf in fl.tree.leaves((model, x))]
    given = fl.Policy(compute_dtype=mx.bfloat16).cast_to_compute((model, x))
    assert given[1] is x
    assert given[0].first.weight.dtype == mx.bfloat16
    assert fl.Policy().cast_to_param(model) is model
    assert all(
        now is leaf and now.dtype == dtype for now, (leaf, dtype) in zip(fl.tree.leaves((model, x)), leaves, strict=True)
    )


def test_what_is_not_floating_point_is_left_alone():
    tree = {"ids": mx.array([1]), "mask": mx.array(True), "z": mx.array(1j), "rate": 0.5, "key": mx.random.key(0), "none": None}
    policy = fl.Policy(param_dtype=mx.float16, compute_dtype=mx.bfloat16, output_dtype=mx.float16)
    assert fl.tree.equal(policy.wrap(lambda tree: tree)(tree), tree)


def test_a_quantized_model_computes_in_the_dtype_of_the_policy():
    seen = []

    def model_output(model, x):
        seen.append((model.weight.dtype, model.scales.dtype, model(x).dtype))
        return model(x)

    quantized = fl.quantize(fl.nn.Linear(64, 64), bits=8)
    out = fl.Policy(compute_dtype=mx.bfloat16).wrap(model_output)(quantized, mx.ones((1, 64)))
    assert seen == [(mx.uint32, mx.bfloat16, mx.bfloat16)]
    assert (out.dtype, quantized.scales.dtype) == (mx.float32, mx.float32)


def test_the_names_of_the_function_are_kept_and_any_callable_is_taken():
    policy = fl.Policy(output_dtype=mx.float16)

    def loss_fn(x):
        """What it says."""
        return x

    assert (policy.wrap(loss_fn).__name__, policy.wrap(loss_fn).__doc__) == ("loss_fn", "What it says.")
    assert policy.wrap(Net(3, 4, 2))(mx.ones((1, 3))).dtype == mx.float16


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_a_policy_can_be_copied_and_pickled(again):
    policy = fl.Policy(mx.float16, mx.bfloat16, mx.float32)
    assert again(policy) == policy


def test_a_policy_is_a_value():
    policy = fl.Policy(compute_dtype=mx.bfloat16)
    assert policy == fl.Policy(mx.float32, mx.bfloat16, mx.float32) != fl.Policy()
    assert hash(policy) == hash(fl.Policy(compute_dtype=mx.bfloat16))
    with pytest.raises(AttributeError):
        policy.compute_dtype = mx.float32


@pytest.mark.parametrize("name", ["param_dtype", "compute_dtype", "output_dtype"])
@pytest.mark.parametrize("given", [None, "bfloat16", mx.int32, mx.bool_, mx.complex64, float, mx.zeros(1)], ids=str)
def test_what_is_no_floating_point_dtype_is_refused(name, given):
    with pytest.raises(TypeError) as raised:
        fl.Policy(**{name: given})
    assert str(raised.value) == NOT_FLOATING.format(name=name, given=describe(given))


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    order = mx.random.permutation(len(data.target), key=mx.random.key(0))
    images, labels = mx.array(data.data / 16, mx.float32)[order], mx.array(data.target, mx.int32)[order]
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


def accuracy_on_digits(policy, scale=None):
    """Return the accuracy on digits not seen, of a small network, and the model and the state that came out."""
    (images, labels), (unseen, expected) = digits()
    opt = optim.skip_nonfinite(optim.AdamW(optim.cosine_decay(0.02, 100)))
    scale = optim.StaticLossScale(1.0) if scale is None else scale

    def loss_fn(model, x, y):
        return fl.nn.losses.cross_entropy(model(x), y, reduction="mean")

    wrapped = policy.wrap(loss_fn)

    def step(model, state, scale, x, y):
        grads = scale.unscale(fl.grad(lambda model: scale.scale(wrapped(model, x, y)))(model))
        model, state = opt.update(model, grads, state)
        return model, state, scale.adjust(optim.all_finite(grads))

    model = policy.cast_to_param(Net(64, 32, 10))
    state = opt.init(model)
    for key in mx.random.split(mx.random.key(1), 10):
        for batch in mx.split(mx.random.permutation(1400, key=key), 10):
            model, state, scale = step(model, state, scale, images[batch], labels[batch])
            fl.eval(model, state, scale)
    hits = policy.wrap(model)(unseen).argmax(-1) == expected
    return hits.mean().item(), model, state


def test_half_precision_with_float32_masters_is_as_accurate_on_the_digits():
    expected, _, _ = accuracy_on_digits(fl.Policy())
    assert expected > 0.93
    for policy, scale in [
        (fl.Policy(compute_dtype=mx.bfloat16), None),
        (fl.Policy(compute_dtype=mx.float16), optim.DynamicLossScale(2.0**17, period=50)),
    ]:
        accuracy, model, state = accuracy_on_digits(policy, scale)
        assert accuracy >= expected - 0.01
        assert {leaf.dtype for leaf in fl.tree.leaves(model)} == {mx.float32}
        assert (state.skipped.item() > 0) == (scale is not None)


@pytest.mark.parametrize(
    "bind",
    [
        lambda fn, layer: functools.partial(fn, layer),
        lambda fn, layer: functools.partial(fn, layer=layer),
        lambda fn, layer: functools.partial(functools.partial(fn, layer), y=mx.ones((1, 2))),
    ],
)
def test_bound_arguments_are_cast(bind):
    seen = []

    def call(layer, x=None, y=None):
        seen.append(layer.weight.dtype)
        return layer(x)

    out = fl.Policy(compute_dtype=mx.bfloat16).wrap(bind(call, fl.nn.Linear(2, 2)))(x=mx.ones((1, 2)))
    assert (seen, out.dtype) == ([mx.bfloat16], mx.float32)


class Counter(fl.Module):
    calls: mx.array = fl.buffer(factory=lambda: mx.array(0.0))
    rates: tuple[mx.array, ...] = fl.buffer(factory=lambda: [mx.array(0.5)])

    def __call__(self, x):
        fl.record(self, calls=fl.recorded(self).calls + 1)
        return x


class Counted(fl.Module):
    counter: Counter
    norm: fl.nn.BatchNorm

    def __call__(self, x):
        return self.norm(self.counter(x))


def counted(**norm):
    return Counted(Counter(), fl.nn.BatchNorm(2, **norm))


@pytest.mark.parametrize("compute", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("outer", [lambda fn: fn, fl.jit], ids=["eager", "jit"])
def test_what_a_function_records_has_the_dtype_of_the_buffer(compute, affine, outer):
    seen = []

    def step(model, x):
        out, model = fl.stateful(model, x)
        seen.append(out.dtype)
        return out, model

    plain = half = counted(affine=affine)
    wrapped = outer(fl.Policy(compute_dtype=compute).wrap(step))
    x = mx.random.normal((64, 2), key=mx.random.key(0)) + 3
    for _ in range(300):
        _, half = wrapped(half, x)
        _, plain = step(plain, x)
    assert half.counter.calls.item() == 300
    assert seen[0] == compute
    for name in ("running_mean", "running_var"):
        assert getattr(half.norm, name).dtype == mx.float32
        assert mx.allclose(getattr(half.norm, name), getattr(plain.norm, name), rtol=2**-7)


@pytest.mark.parametrize("compute", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_in_evaluation_mode_buffers_are_cast_as_parameters_are(compute, affine):
    seen = []
    model = counted(affine=affine).eval()
    fl.Policy(compute_dtype=compute).wrap(lambda model, x: seen.append(model.norm(x).dtype))(model, mx.ones((4, 2)))
    assert seen == [compute]
    assert fl.Policy(compute_dtype=compute).cast_to_compute(model).norm.running_mean.dtype == compute


class Tables(fl.Module):
    mean: mx.array = fl.buffer(factory=lambda: mx.ones(1))
    means: tuple[mx.array, ...] = fl.buffer(factory=lambda: [mx.ones(1)])
    table: mx.array = fl.buffer(factory=lambda: mx.ones(1), persistent=False)
    _private: mx.array = fl.buffer(factory=lambda: mx.ones(1))
    constant: mx.array = fl.buffer(factory=lambda: mx.ones(1), cast=True)
    exact: mx.array = fl.buffer(factory=lambda: mx.ones(1), cast=False)
    count: mx.array = fl.buffer(factory=lambda: mx.array(1))
    teacher: fl.nn.Linear = fl.buffer(factory=lambda: fl.nn.Linear(1, 1))
    weight: mx.array = fl.parameter(factory=lambda: mx.ones(1), frozen=True)


@pytest.mark.parametrize(
    ("training", "kept"), [(True, ["mean", "means.0", "exact", "count"]), (False, ["exact", "count"])], ids=str
)
def test_buffers_that_a_module_may_record_are_not_cast(training, kept):
    model = [Tables().train(training)]
    cast = fl.Policy(compute_dtype=mx.float16).cast_to_compute(model)
    pairs = zip(fl.tree.paths(model), fl.tree.leaves(model), fl.tree.leaves(cast), strict=True)
    assert [path[2:] for path, before, after in pairs if after is before] == kept
    assert cast[0].mean.dtype == (mx.float32 if training else mx.float16)
    everything = model[0].astype(mx.float16)  # which is what the user says
    assert [path for path, leaf in zip(fl.tree.paths(model[0]), fl.tree.leaves(everything), strict=True)
            if leaf.dtype == mx.float32] == ["exact"]  # fmt: skip


def test_which_arrays_are_cast_is_worked_out_once_a_structure(monkeypatch):
    asked = []
    monkeypatch.setattr(fields, "cast", lambda field, cast=fields.cast: asked.append(field) or cast(field))
    model = fl.nn.Sequential(*[fl.nn.Linear(2, 2) for _ in range(3)])
    wrapped = fl.Policy(compute_dtype=mx.float16).wrap(model)
    wrapped(mx.ones((1, 2)))
    assert asked
    asked.clear()
    wrapped(mx.ones((1, 2)))
    assert asked == []
