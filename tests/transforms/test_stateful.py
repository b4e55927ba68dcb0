"""stateful, record and latest: what a forward pass computes besides its result."""

import asyncio
import functools
import threading
import warnings
from typing import Any

import mlx.core as mx
import mlx.nn
import mlx.optimizers
import pytest

import frostleaf as fl
from frostleaf.transforms.stateful import BESIDE, STRANGER, UNCOLLECTED

NOT_A_BUFFER = "{cls} has no buffer {name!r} to record{nearest}. Declare it with fl.buffer() in the class body."
NOT_A_MODEL = "fl.stateful takes a module, a bound method of one or a function of one, and was given {kind}"

X = mx.array([1.0, 2.0])


class Counter(fl.Module):
    """Adds up what it has been given."""

    scale: Any = None
    total: mx.array = fl.buffer(factory=lambda: mx.zeros(2))
    calls: mx.array = fl.buffer(factory=lambda: mx.array(0))
    name: str = fl.static(default="")

    def __call__(self, x):
        now = fl.recorded(self)
        fl.record(self, total=now.total + x, calls=now.calls + 1)
        return x

    def quietly(self, x):
        return x + x


class Model(fl.Module):
    parts: Any
    weight: Any = None

    def __call__(self, x, times=1):
        for _ in range(times):
            for part in self.parts.values() if hasattr(self.parts, "values") else self.parts:
                x = part(x)
        return x

    def through_first(self, x):
        return self.parts[0](x)


def totals(model):
    return [(each.total.tolist(), each.calls.item()) for each in reversed(model.modules()) if isinstance(each, Counter)]


def eager_and_jitted(model, /, *args, **kwargs):
    """Return what ``stateful`` returns, eagerly and twice jitted, having checked that it is the same."""
    before = fl.tree.leaves(model)
    out, after = fl.stateful(model, *args, **kwargs)
    jitted = fl.jit(lambda model, *args: fl.stateful(model, *args, **kwargs))
    for _ in range(2):
        jitted_out, jitted_after = jitted(model, *args)
        assert fl.tree.equal(jitted_out, out)
        assert fl.tree.equal(jitted_after, after)
    assert jitted.trace_count == 1
    assert all(new is old for new, old in zip(fl.tree.leaves(model), before, strict=True))
    return out, after


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Counter(), [([1.0, 2.0], 1)]),
        (Model([Counter()]), [([1.0, 2.0], 1)]),
        (Model([Counter(), Counter(name="second")]), [([1.0, 2.0], 1)] * 2),
        (Model({"b": Counter(), "a": Counter()}), [([1.0, 2.0], 1)] * 2),
        (Model([Model((Counter(), Model([Counter()])))]), [([1.0, 2.0], 1)] * 2),
        (Model([Counter(scale=Counter()), Counter()]), [([1.0, 2.0], 1), ([0.0, 0.0], 0), ([1.0, 2.0], 1)]),
    ],
)
def test_nested_modules_record(model, expected):
    out, after = eager_and_jitted(model, X)
    assert out.tolist() == X.tolist()
    assert sorted(totals(after)) == sorted(expected)
    assert fl.tree.structure(after) == fl.tree.structure(model)
    again = fl.stateful(after, X)[1]
    assert sorted(totals(again)) == sorted([([2 * each for each in total], 2 * calls) for total, calls in expected])


def test_a_layer_that_is_called_twice_goes_on_from_its_first_call():
    _, after = eager_and_jitted(Model([Counter()]), X, times=3)
    assert totals(after) == [([3.0, 6.0], 3)]


def test_an_object_at_two_places_is_two_parts():
    shared = Counter()
    _, after = eager_and_jitted(Model([shared, Model([shared])]), X)
    assert totals(after) == [([1.0, 2.0], 1)] * 2
    _, after = eager_and_jitted(Model((shared, shared)), X, times=2)
    assert totals(after) == [([2.0, 4.0], 2)] * 2
    _, after = fl.stateful(Model([shared, shared]).through_first, X)
    assert totals(after) != [([1.0, 2.0], 1)] * 2


class Pair(fl.Module):
    first: fl.nn.BatchNorm
    second: fl.nn.BatchNorm

    def __call__(self, x):
        return self.second(self.first(x) * 3 + 1)


NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize("wrap", [lambda fn: fn, fl.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    "make",
    [
        lambda pair: pair.tie({f"second.{name}": f"first.{name}" for name in NORM}),
        lambda pair: Model([pair.tie({f"second.{name}": f"first.{name}" for name in NORM})]),
        lambda pair: Model([pair]).tie({f"parts.0.second.{name}": f"parts.0.first.{name}" for name in NORM}),
    ],
    ids=["itself", "a tie inside", "a tie around"],
)
def test_tied_buffers_are_one(make, wrap):
    norm, x = mlx.nn.BatchNorm(2), mx.random.normal((5, 2))
    model, run = make(Pair(fl.nn.BatchNorm(2), fl.nn.BatchNorm(2))), wrap(lambda model, x: fl.stateful(model, x))
    for _ in range(2):
        expected = norm(norm(x) * 3 + 1)
        out, model = run(model, x)
        assert mx.allclose(out, expected, atol=1e-5)
        pair = model if isinstance(model, Pair) else model.parts[0]
        for name in ("running_mean", "running_var"):
            assert getattr(pair.first, name) is getattr(pair.second, name)
            assert mx.allclose(getattr(pair.first, name), getattr(norm, name), atol=1e-5)


def test_buffers_of_which_one_is_tied():
    x = mx.array([[1.0, 2.0], [3.0, 6.0]])
    pair = Pair(fl.nn.BatchNorm(2), fl.nn.BatchNorm(2)).tie({"second.running_mean": "first.running_mean"})
    _, after = fl.stateful(pair, x)
    _, apart = fl.stateful(pair.untie(), x)
    assert after.first.running_mean is after.second.running_mean
    for name in ("first", "second"):
        assert getattr(after, name).running_var.tolist() == getattr(apart, name).running_var.tolist()


def test_everything_that_was_not_recorded_is_shared():
    still, counter = fl.nn.Linear(2, 2), Counter(scale=mx.ones(2))
    model = Model([counter, still], weight={"w": [mx.ones(3)]})
    _, after = fl.stateful(model, X)
    assert after.parts[1] is still
    assert after.weight is model.weight
    assert after.parts[0].scale is counter.scale
    assert after.parts[0] is not counter
    quiet = Model([still])
    assert fl.stateful(quiet, X)[1] is quiet
    assert fl.stateful(counter.quietly, X)[1] is counter


def test_mode_frozen_names_and_static_values_stay():
    model = Model([Counter(name="it", scale=mx.ones(2)).freeze(), Counter().eval()])
    _, after = eager_and_jitted(model, X)
    assert fl.tree.structure(after) == fl.tree.structure(model)
    assert after.parts[0].name == "it"


def test_a_bound_method_is_called_on_the_model():
    first, second = Counter(), Counter()
    model = Model([first, second])
    out, after = fl.stateful(model.through_first, X)
    assert out.tolist() == X.tolist()
    assert sorted(totals(after)) == [([0.0, 0.0], 0), ([1.0, 2.0], 1)]
    assert after.parts[1] is second
    jitted = fl.jit(lambda model, x: fl.stateful(model.through_first, x))
    assert fl.tree.equal(jitted(model, X)[1], after)
    assert fl.tree.equal(fl.stateful(model.through_first, x=X)[1], after)


WRAPPERS = {
    "jit": fl.jit,
    "checkpoint": fl.checkpoint,
    "both": lambda model: fl.jit(fl.checkpoint(model)),
    "a method": lambda model: fl.checkpoint(model.__call__),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_model_comes_back_in_its_wrapper(wrap):
    model = Model([Counter(), fl.nn.Identity()])
    wrapped = wrap(model)
    out, after = fl.stateful(wrapped, X)
    assert out.tolist() == X.tolist()
    assert type(after) is type(wrapped)
    assert fl.tree.equal(fl.tree.leaves(after), fl.tree.leaves(fl.stateful(model, X)[1]))
    assert fl.tree.leaves(fl.stateful(after, X)[1])[0].tolist() == [2.0, 4.0]
    assert fl.tree.leaves(wrapped)[0].tolist() == [0.0, 0.0]
    # Given a module, it is a function of that.
    assert totals(fl.stateful(fl.checkpoint(lambda model, x: model(x)), model, X)[1]) == [([1.0, 2.0], 1)]


def test_a_wrapped_model_that_maps_says_where_to_record():
    with pytest.raises(RuntimeError, match=r"a Counter recorded buffers while Model was mapped.* Call fl\.stateful inside"):
        fl.stateful(fl.vmap(Model([Counter()])), X)


def test_only_what_may_record_is_put_together_anew():
    met = []

    class Watching(fl.Module):
        inner: Any
        scale: mx.array

        def __call__(self, x):
            met.append(self)
            return self.inner(x) * self.scale

    still = Watching(fl.nn.Linear(2, 2), mx.ones(2))
    recording = Watching(Counter(), mx.ones(2))
    model = Model([still, recording])
    fl.stateful(model, X)
    assert met[0] is still
    assert met[1] is not recording
    assert met[1].scale is recording.scale


def test_a_module_without_arrays_in_a_static_field_records():
    class Last(fl.Module):
        seen: Any = fl.buffer(default=None)

        def __call__(self, x):
            fl.record(self, seen="seen")
            return x

    class Holder(fl.Module):
        inner: Any = fl.static()

        def __call__(self, x):
            return self.inner["a"][0](x)

    _, after = fl.stateful(Model([Holder({"a": [Last()]})]), X)
    assert after.parts[0].inner["a"][0].seen == "seen"


@pytest.mark.filterwarnings("ignore::frostleaf.CapturedArrayWarning")
def test_arguments_and_buffers_may_have_any_name():
    class Named(fl.Module):
        module: mx.array = fl.buffer(factory=lambda: mx.zeros(2))

        def __call__(self, *, model, args=None, self_=None):
            fl.record(self, module=model)
            return model

    _, after = eager_and_jitted(Named(), model=X)
    assert after.module.tolist() == X.tolist()


def test_a_jitted_method_can_be_called_by_stateful_or_says_that_it_can_not():
    """Never are statistics lost without a word, neither at the first call nor when the trace is used again."""
    layer = fl.jit(lambda counter, x: counter(x))

    class Jitting(fl.Module):
        counter: Counter

        def __call__(self, x):
            return layer(self.counter, x)

    model = Jitting(Counter())
    for _ in range(3):
        try:
            after = fl.stateful(model, X)[1]
        except RuntimeError:
            continue
        assert totals(after) == [([1.0, 2.0], 1)]


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_statistics_are_not_lost_when_the_layer_was_jitted_before():
    layer = fl.jit(lambda counter, x: counter(x))
    layer(Counter(), X)

    class Jitting(fl.Module):
        counter: Counter

        def __call__(self, x):
            return layer(self.counter, x)

    try:
        after = fl.stateful(Jitting(Counter()), X)[1]
    except RuntimeError:
        return
    assert totals(after) == [([1.0, 2.0], 1)]


def test_a_plain_call_records_nothing():
    counter = Counter()
    with pytest.warns(fl.UncollectedStateWarning, match=r"a Counter .* recorded total, .* fl\.stateful .* model\.eval\(\)"):
        counter(X)
    assert totals(counter) == [([0.0, 0.0], 0)]
    assert fl.recorded(counter) is counter
    with pytest.warns(fl.UncollectedStateWarning):
        fl.record(counter, calls=mx.array(5))
    assert fl.recorded(counter) is counter
    with pytest.warns(fl.UncollectedStateWarning) as caught:
        fl.jit(counter)(X)
    assert caught[0].filename == __file__
    counter.eval()(X)  # of which nobody expects statistics
    assert isinstance(fl.eval_shape(counter, X), fl.ShapeDtypeStruct)
    assert totals(fl.stateful(counter, X)[1]) == [([1.0, 2.0], 1)]


def uncollected(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert [each.category for each in caught] == [fl.UncollectedStateWarning] * len(caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("jitted", [False, True])
def test_state_that_nobody_collects_in_a_loop_is_warned_of_once(jitted):
    def loop():
        models = [Counter(), Counter(), Counter(name="other")]
        for model in models:
            call = fl.jit(model) if jitted else model
            call(X)

    said = UNCOLLECTED.format(cls="Counter", names="total, calls")
    assert uncollected(loop) == uncollected(loop) == [said]


def test_each_class_and_each_line_is_warned_of():
    def calls():
        for _ in range(2):
            fl.nn.BatchNorm(2)(x)
            fl.nn.BatchNorm(2)(x)
            fl.nn.Sequential(fl.nn.BatchNorm(2), fl.nn.BatchNorm(2), Counter())(x)

    x = mx.ones((3, 2))
    assert len(uncollected(calls)) == 4


def test_a_batch_norm_whose_statistics_stay_is_not_warned_of():
    x = mx.random.normal((3, 2))
    layer = fl.nn.BatchNorm(2, momentum=0.0)
    assert uncollected(lambda: layer(x)) == []
    out, after = fl.stateful(layer, x)
    assert fl.tree.equal(out, layer(x))
    assert fl.tree.equal(after, layer)
    assert not fl.tree.equal(out, layer.eval()(x))
    assert len(uncollected(lambda: fl.nn.BatchNorm(2)(x))) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.stateful(len, X), TypeError, NOT_A_MODEL.format(kind="builtin_function_or_method")),
        (lambda: fl.stateful(lambda x: x, X), TypeError, NOT_A_MODEL.format(kind="function")),
        (lambda: fl.stateful(None), TypeError, NOT_A_MODEL.format(kind="NoneType")),
        (lambda: fl.stateful([Counter()], X), TypeError, NOT_A_MODEL.format(kind="list")),
        (
            lambda: fl.stateful(functools.partial(Counter()), X),
            TypeError,
            NOT_A_MODEL.format(kind="partial. Give it what the partial function is of, and the arguments after that"),
        ),
        (
            lambda: fl.stateful(lambda models: None, {"a": Counter()}.values()),
            TypeError,
            "the dict_values at 0 holds arrays (0: a Counter), which are no leaves: they would not be trained, cast, mapped or "
            "saved. Pass a list of what is in it.",
        ),
        (lambda: fl.stateful("text".upper), TypeError, NOT_A_MODEL.format(kind="builtin_function_or_method")),
        (
            lambda: fl.record(Counter(), total=X, call=X),
            TypeError,
            NOT_A_BUFFER.format(cls="Counter", name="call", nearest="; the nearest is 'calls'"),
        ),
        (
            lambda: fl.record(Counter(), scale=X),
            TypeError,
            NOT_A_BUFFER.format(cls="Counter", name="scale", nearest="; the nearest is 'calls'"),
        ),
        (lambda: fl.record(Counter(), name="x"), TypeError, NOT_A_BUFFER.format(cls="Counter", name="name", nearest="")),
        (
            lambda: fl.record(fl.nn.Linear(2, 2), weight=X),
            TypeError,
            NOT_A_BUFFER.format(cls="Linear", name="weight", nearest=""),
        ),
    ],
)
def test_what_can_not_be_called_or_recorded_is_an_error(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


OUTSIDER = Counter()


class Strange(fl.Module):
    counter: Counter
    how: Any = fl.static(default=None)

    def __call__(self, x):
        return self.how(self.counter)(x)


@pytest.mark.parametrize(
    "how",
    [
        lambda counter: OUTSIDER,
        lambda counter: counter.replace(name="copy"),
        lambda counter: counter.eval(),
        lambda counter: Counter(),
    ],
    ids=["another", "a copy with a name", "a copy in evaluation mode", "a new one"],
)
def test_a_stranger_that_records_is_an_error(how):
    model = Strange(Counter(), how)
    message = STRANGER.format(cls="Counter", names="total, calls")
    for _ in range(2):
        with pytest.raises(RuntimeError) as raised:
            fl.stateful(model, X)
        assert str(raised.value) == message
        with pytest.raises(RuntimeError) as raised:
            fl.jit(fl.stateful)(model, X)
        assert str(raised.value) == message
    assert totals(fl.stateful(Counter(), X)[1]) == [([1.0, 2.0], 1)]


def test_an_exception_leaves_nothing_behind():
    class Failing(fl.Module):
        counter: Counter

        def __call__(self, x, fails):
            x = self.counter(x)
            if fails:
                raise KeyError("mine")
            return x

    model = Failing(Counter())
    for call in (fl.stateful, fl.jit(fl.stateful)):
        with pytest.raises(KeyError, match="mine"):
            call(model, X, True)
        assert fl.recorded(model.counter) is model.counter
        with pytest.warns(fl.UncollectedStateWarning):
            fl.record(model.counter, calls=mx.array(9))
        assert totals(call(model, X, False)[1]) == [([1.0, 2.0], 1)]


def test_stateful_inside_stateful_is_a_world_of_its_own():
    class Outer(fl.Module):
        counter: Counter
        inner: Counter

        def __call__(self, x):
            x = self.counter(x)
            x, inner = fl.stateful(self.inner, x)
            assert fl.recorded(self.counter).calls.shape == ()
            return self.counter(x), inner

    (_, inner), after = eager_and_jitted(Outer(Counter(), Counter()), X)
    assert totals(inner) == [([1.0, 2.0], 1)]
    assert totals(after.counter) == [([2.0, 4.0], 2)]
    assert totals(after.inner) == [([0.0, 0.0], 0)]


@pytest.mark.filterwarnings("ignore::frostleaf.CapturedArrayWarning")
def test_an_exception_in_an_inner_stateful_leaves_the_outer_records():
    class Outer(fl.Module):
        counter: Counter

        def __call__(self, x):
            x = self.counter(x)
            with pytest.raises(RuntimeError):
                fl.stateful(Strange(Counter(), lambda counter: OUTSIDER), x)
            return self.counter(x)

    assert totals(eager_and_jitted(Outer(Counter()), X)[1]) == [([2.0, 4.0], 2)]


def test_what_was_recorded_can_be_static_free_and_of_another_shape_or_dtype():
    class Last(fl.Module):
        seen: Any = fl.buffer(default=None)

        def __call__(self, x):
            fl.record(self, seen={"x": [x]})
            return x

    for x in (X, mx.ones((2, 3), mx.int32)):
        _, after = eager_and_jitted(Last(), x)
        assert after.seen["x"][0].shape == x.shape
        assert type(after.seen["x"]) is tuple


def test_state_is_found_through_a_gradient():
    def loss(model, x):
        out, after = fl.stateful(model, x * model.weight)
        return (out * model.weight).sum(), after

    model = Model([Counter(), Counter()], weight=mx.full(2, 2.0))
    (value, after), gradient = fl.value_and_grad(loss, has_aux=True)(model, X)
    assert value.item() == 12.0
    assert gradient.weight.tolist() == [4.0, 8.0]
    assert totals(after) == [([2.0, 4.0], 1)] * 2
    assert after.weight.tolist() == [2.0, 2.0]


def test_threads_record_for_themselves():
    found, barrier = {}, threading.Barrier(4)

    def run(number):
        model = Model([Counter(), Counter()])
        barrier.wait()
        for _ in range(20):
            _, model = fl.stateful(model, mx.full(2, number))
        found[number] = totals(model)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [([20.0 * number] * 2, 20)] * 2 for number in range(4)}


def test_tasks_record_for_themselves():
    shared = Counter()

    async def run(number):
        model = Model([shared])
        for _ in range(3):
            _, model = fl.stateful(model, mx.full(2, number))
            await asyncio.sleep(0)
        return totals(model)

    async def both():
        return await asyncio.gather(run(1), run(2))

    assert asyncio.run(both()) == [[([3.0, 3.0], 3)], [([6.0, 6.0], 3)]]


STEPS = 5
INPUTS = [mx.random.normal((6, 3), key=key) for key in mx.random.split(mx.random.key(0), STEPS)]


class Net(fl.Module):
    first: fl.nn.Linear
    norm: fl.nn.BatchNorm

    def __init__(self, nn):
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm(4)

    def __call__(self, x):
        return self.norm(self.first(x))


class Twin(mlx.nn.Module):
    def __init__(self, nn):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm(4)

    def __call__(self, x):
        return self.norm(self.first(x))


def twins():
    mx.random.seed(1)
    ours = Net(fl.nn)
    mx.random.seed(1)
    return ours, Twin(mlx.nn)


@pytest.mark.parametrize("jitted", [False, pytest.param(True, marks=pytest.mark.long)])
def test_batch_norm_trained_by_a_jitted_step_has_the_statistics_of_mlx(jitted):
    ours, theirs = twins()
    rule, opt = mlx.optimizers.SGD(0.1), fl.optim.SGD(0.1)

    def loss(model, x):
        out, after = fl.stateful(model, x)
        return mx.abs(out).sum(), after

    # The optimizer stays outside: every kernel that jit has to compile takes a second.
    differentiated_ours = fl.value_and_grad(loss, has_aux=True)
    train = fl.jit(differentiated_ours) if jitted else differentiated_ours
    state = opt.init(ours)
    differentiated = mlx.nn.value_and_grad(theirs, lambda x: mx.abs(theirs(x)).sum())
    for x in INPUTS:
        (value, ours), gradient = train(ours, x)
        ours, state = opt.update(ours, gradient, state)
        expected, gradient = differentiated(x)
        rule.update(theirs, gradient)
        assert mx.allclose(value, expected, rtol=1e-5, atol=1e-6)
    flat = dict(mlx.utils.tree_flatten(theirs.parameters()))
    assert set(fl.tree.paths(ours)) == set(flat)
    same = (lambda a, b: mx.allclose(a, b, rtol=1e-5, atol=1e-6)) if jitted else mx.array_equal
    for path, leaf in zip(fl.tree.paths(ours), fl.tree.leaves(ours), strict=True):
        assert same(leaf, flat[path]), path
    assert not jitted or train.trace_count == 1
    ours, _ = ours.eval(), theirs.eval()
    assert mx.allclose(ours(INPUTS[0]), theirs(INPUTS[0]), rtol=1e-5, atol=1e-6)


def test_batch_norm_called_twice_in_one_pass_moves_twice_as_in_mlx():
    class Twice(fl.Module):
        norm: fl.nn.BatchNorm

        def __call__(self, x):
            return self.norm(self.norm(x) + x)

    ours, theirs = Twice(fl.nn.BatchNorm(3)), mlx.nn.BatchNorm(3)
    for x in INPUTS[:2]:
        out, ours = fl.stateful(ours, x)
        assert mx.allclose(out, theirs(theirs(x) + x), rtol=1e-5, atol=1e-5)
    for name in ("running_mean", "running_var"):
        assert mx.allclose(getattr(ours.norm, name), getattr(theirs, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fl.stateful(lambda m, x, d: d(m(x)), fl.nn.Linear(2, 2), X, d=Counter()),
        lambda: fl.stateful(lambda m, x, rest: rest["d"](m(x)), fl.nn.Linear(2, 2), X, rest={"d": Counter()}),
        lambda: fl.stateful(Through(), Counter(), X),
        lambda: fl.stateful(Through(), x=X, other=Counter()),
    ],
)
def test_a_module_beside_the_model_says_what_to_write(call):
    with pytest.raises(RuntimeError) as raised:
        call()
    assert str(raised.value) == BESIDE.format(cls="Counter", names="total, calls")


class Through(fl.Module):
    """Calls a module that is not its own."""

    def __call__(self, other, x):
        return other(x)
