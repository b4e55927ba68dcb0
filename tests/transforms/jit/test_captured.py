"""The warning of jit about arrays that a function reads from outside its arguments."""

import dis
import functools
import gc
import inspect
import types
import warnings
import weakref
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn
import pytest

import frostleaf as fl
from frostleaf.transforms.jit.captured import CAPTURED, LOST

X = mx.arange(2)
MODEL = fl.nn.Linear(2, 3)
SCALE = mx.array([1.0, 2.0, 3.0])
weight = mx.array(1)


class Holder(fl.Module):
    array: Any
    rule: Any = fl.static(default=None)

    def take(self, x):
        return x, self.array


class Plain:
    weight = SCALE

    def __call__(self, x):
        return x


def captured(fn, *args):
    """Return the messages of the warnings that the first calls give; the second calls give none."""
    jitted = fl.jit(fn)
    found = []
    for shape in ((2,), (3,)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jitted(mx.zeros(shape), *args)
        found.append(caught)
    assert found[1] == []
    assert [each.category for each in found[0]] == [fl.CapturedArrayWarning] * len(found[0])
    return [str(each.message) for each in found[0]]


def warned(name, variables):
    return [CAPTURED.format(fn=name, variables=variables)]


VALUES = {
    "an array": (X, "i32[2]"),
    "a module": (MODEL, "a Linear with 2 arrays"),
    "a module of MLX": (mlx.nn.Sequential(mlx.nn.Linear(2, 2), mlx.nn.Linear(2, 2, bias=False)), "a Sequential with 3 arrays"),
    "a list": ([1, X], "a list with 1 array"),
    "a dict": ({"a": MODEL, "b": [X, None]}, "a dict with 3 arrays"),
    "a tuple": ((MODEL, MODEL), "a tuple with 4 arrays"),
    "a partial": (functools.partial(len, X), "a partial with 1 array"),
    "a partial of a module": (functools.partial(MODEL, x=X), "a partial with 3 arrays"),
    "a method of a module": (MODEL.freeze, "a method with 2 arrays"),
    "a jitted module": (fl.jit(MODEL), "a Jitted with 2 arrays"),
    "a checkpointed module": (fl.checkpoint(MODEL), "a Checkpointed with 2 arrays"),
    "the state of an optimizer": (fl.optim.SGD(0.1).init(MODEL), "an OptimizerState with 5 arrays"),
}


@pytest.mark.parametrize(("value", "shown"), VALUES.values(), ids=VALUES)
def test_an_array_or_a_tree_of_arrays_in_the_closure_is_warned_of(value, shown):
    def step(x):
        return len([value]), x

    assert captured(step) == warned("step", f"value ({shown})")


NO_ARRAYS = {
    "a number": 3,
    "a string": "text",
    "nothing": None,
    "a function": lambda x: x + 1,
    "a jitted function": fl.jit(lambda x: x + SCALE),
    "a package": mx,
    "a class": Plain,
    "an ordinary object": Plain(),
    "an optimizer": fl.optim.AdamW(1e-3),
    "a module without arrays": fl.nn.Dropout(0.5),
    "an empty list": [],
    "numbers in a dict": {"a": [1, 2.0], "b": {3}},
    "a partial of numbers": functools.partial(len, [1]),
    "a dtype": mx.float32,
    "the random state": mx.random.state,
}


@pytest.mark.parametrize("value", NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_what_holds_no_array_is_not_warned_of(value):
    assert captured(lambda x: (len([value]), x)) == []


class Broken(dict):
    def keys(self):
        raise RuntimeError

    def __iter__(self):
        raise RuntimeError


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize("value", [Broken(a=X), ENDLESS], ids=["broken", "endless"])
def test_what_can_not_be_looked_into_is_not_warned_of(value):
    assert captured(lambda x: (len([value]), x)) == []


def test_a_variable_that_has_no_value_yet_is_not_warned_of():
    def step(x):
        return x if x.size else (later, no_such_global)  # noqa: F821

    assert captured(step) == []
    later = 1


def reads_a_global(x):
    return x, SCALE


def reads_it_in_a_nested_function(x):
    def inner():
        return [lambda: SCALE for _ in range(2)]

    return x, inner()[0]()


def reads_it_in_a_comprehension(x):
    return [(x, SCALE) for _ in range(2)]


def reads_it_in_a_nested_class(x):
    class Inner:
        scale = SCALE

    return x, Inner.scale


def reads_two(x):
    return SCALE, x, X, SCALE


def has_a_default(x, y=1, by=SCALE):
    return x


def has_a_default_by_name(x, *, y=1, by=SCALE):
    return x


@pytest.mark.parametrize(
    ("function", "variables"),
    [
        (reads_a_global, "SCALE (f32[3])"),
        (reads_it_in_a_nested_function, "SCALE (f32[3])"),
        (reads_it_in_a_comprehension, "SCALE (f32[3])"),
        (reads_it_in_a_nested_class, "SCALE (f32[3])"),
        (reads_two, "SCALE (f32[3]), X (i32[2])"),
        (has_a_default, "by (f32[3])"),
        (has_a_default_by_name, "by (f32[3])"),
        (functools.partial(functools.partial(has_a_default), y=2), "by (f32[3])"),
    ],
)
def test_globals_and_defaults_are_looked_at(function, variables):
    assert captured(function) == warned(getattr(function, "func", function).__name__, variables)


def assigns_a_global(x):
    global assigned
    assigned = x.size
    return x


assigned: Any = X


def names_an_attribute(x, holder):
    return x.T, holder.weight, Plain.SCALE, Plain().X


def has_a_variable_of_its_own(x, SCALE=None):  # noqa: N803
    weight = x
    return [(weight, SCALE) for X in range(2)]


Plain.SCALE = Plain.X = 1


@pytest.mark.parametrize(
    ("function", "args"), [(assigns_a_global, ()), (names_an_attribute, (Plain(),)), (has_a_variable_of_its_own, ())]
)
def test_what_only_has_the_name_of_an_array_is_not_warned_of(function, args):
    assert captured(function, *args) == []


def test_a_nonlocal_that_is_only_assigned_is_not_warned_of():
    last = X

    def step(x):
        nonlocal last
        last = x.size
        return x

    assert captured(step) == []


def test_what_is_bound_is_an_argument():
    assert captured(Holder(X).take) == captured(Holder(X, rule=len).take) == []
    assert captured(functools.partial(lambda held, x: x, MODEL)) == []
    assert captured(lambda x: x) == captured(Plain()) == captured(mx.tanh) == []


def test_an_object_that_is_a_tree_of_arrays_itself_is_captured():
    theirs = mlx.nn.Linear(2, 2)
    theirs.take = types.MethodType(lambda self, x: x, theirs)
    assert captured(theirs.take) == warned("<lambda>", "self (a method with 2 arrays)")
    assert captured(type("Theirs", (mlx.nn.Linear,), {"__call__": lambda self, x: x})(2, 2)) == warned(
        "Theirs", "self (a Theirs with 2 arrays)"
    )


def test_a_decorated_function_is_looked_at_itself():
    def loss(x):
        return (x * SCALE[:1]).sum()

    assert captured(fl.grad(loss)) == warned("loss", "SCALE (f32[3])")
    assert captured(functools.lru_cache(lambda x: x)) == []


def test_an_inner_jitted_function_gives_its_own_warning():
    inner = fl.jit(reads_a_global)
    assert captured(fl.jit(inner)) == warned("reads_a_global", "SCALE (f32[3])")
    assert captured(lambda x: inner(x)) == []


def test_a_library_function_is_not_warned_of():
    assert captured(lambda x: (x, fl.next_key())) == captured(fl.tree.leaves) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fl.jit(fl.next_key)()


def test_no_array_is_evaluated():
    large = mx.zeros((10**6, 10**6))  # more than there is memory for
    assert captured(lambda x: (x, len([large]))) == warned("<lambda>", "large (f32[1000000,1000000])")


@pytest.mark.parametrize("call", [lambda f: f(X), lambda f: fl.grad(f)(SCALE), lambda f: fl.jit(lambda x: f(x))(X)])
def test_the_warning_points_at_the_line_of_the_call(call):
    jitted = fl.jit(lambda x: x.sum() + weight)
    with pytest.warns(fl.CapturedArrayWarning, match="weight") as caught:
        call(jitted)
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, inspect.getsourcelines(call)[1])]


def test_a_warning_made_an_error_leaves_the_function_whole():
    jitted = fl.jit(reads_a_global)
    with pytest.raises(fl.CapturedArrayWarning):
        jitted(X)
    assert jitted(X)[0].tolist() == [0, 1]
    assert jitted.trace_count == 1


# One call away


def helper(x):
    return x + SCALE[:1]


def second_helper(x):
    return helper(x)


class Scaled(fl.Module):
    weight: mx.array

    @property
    def doubled(self):
        return self.weight * SCALE[0]

    def __call__(self, x):
        return x + self.inner(x)

    def inner(self, x):
        return self.weight.sum() + X[:1]

    def unused(self, x):
        return weight


class WithRate:
    rate = 1

    def __init__(self, rule=None):
        self.rule = rule

    @property
    def scale(self):
        return self.rate * SCALE[:1]


USER = types.ModuleType("user")
USER.SCALE, USER.helper, USER.inner = SCALE, helper, types.ModuleType("user.inner")
USER.inner.X = X
DECORATED = fl.grad(lambda x: (x * SCALE[:1]).sum())


def in_closures():
    w = mx.array(2.0)

    def loss(x):
        return x * w

    return loss


LOSS = in_closures()

AWAY = {
    "a helper": (lambda x: helper(x), "SCALE in helper (f32[3])"),
    "a helper of a helper": (lambda x: second_helper(x), "SCALE in helper (f32[3])"),
    "a helper with a closure": (lambda x: LOSS(x), "w in loss (f32[])"),
    "a helper that is passed on": (lambda x: list(map(helper, [x])), "SCALE in helper (f32[3])"),
    "a checkpointed helper": (lambda x: fl.checkpoint(helper)(x), "SCALE in helper (f32[3])"),
    "a partial helper": (lambda x: functools.partial(helper)(x), "SCALE in helper (f32[3])"),
    "a helper with a decorator": (lambda x: DECORATED(x), "SCALE in <lambda> (f32[3])"),
    "a helper in a module": (lambda x: USER.helper(x), "SCALE in helper (f32[3])"),
    "an array in a module": (lambda x: x + USER.SCALE[:1], "USER.SCALE (f32[3])"),
    "an array in a module in a module": (lambda x: x + USER.inner.X[:1], "USER.inner.X (i32[2])"),
    "itself": (lambda x, n=0: x if n else AWAY, None),
}


@pytest.mark.parametrize(("function", "variables"), AWAY.values(), ids=AWAY)
def test_functions_that_it_calls_are_looked_at(function, variables):
    jitted = fl.jit(function)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jitted(mx.zeros(2)) if function is not AWAY["itself"][0] else jitted(mx.zeros(2), 1)
    found = [str(each.message) for each in caught if each.category is fl.CapturedArrayWarning]
    assert found == ([] if variables is None else warned("<lambda>", variables))


ARGUMENTS = {
    "a function": (lambda x, fn: fn(x), LOSS, "w in loss (f32[])"),
    "an object's property": (lambda x, each: x + each.scale, WithRate(), "SCALE in scale (f32[3])"),
    "an object's rule": (lambda x, each: each.rule(x), WithRate(helper), "SCALE in helper (f32[3])"),
    "a module": (lambda x, model: model(x), Scaled(SCALE), "X in inner (i32[2])"),
    "a module's property": (
        lambda x, model: x + model.doubled[:1],
        Scaled(SCALE),
        "SCALE in doubled (f32[3]), X in inner (i32[2])",
    ),
    "a layer": (lambda x, model: x + model.weight[0, 0], fl.nn.Linear(2, 2), None),
    "a module of the same name": (lambda x, SCALE: x + SCALE.weight[:1], fl.nn.LayerNorm(2), None),  # noqa: N803
}


@pytest.mark.parametrize(("function", "given", "variables"), ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.filterwarnings("ignore::frostleaf.MutableArgumentWarning")
def test_what_the_arguments_call_is_looked_at_and_they_themselves_are_not(function, given, variables):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fl.jit(function)(mx.zeros(2), given)
    found = [str(each.message) for each in caught if each.category is fl.CapturedArrayWarning]
    assert found == ([] if variables is None else warned("<lambda>", variables))


def test_a_message_names_a_few_of_many():
    many = types.ModuleType("many")
    vars(many).update({f"w{number}": X for number in range(50)})
    source = "lambda x: (x, " + ", ".join(f"many.w{number}" for number in range(50)) + ")"
    message = captured(eval(source, {"many": many}))[0]
    assert message.count("i32[2]") == 8
    assert ", ... from outside" in message


def test_code_is_looked_through_once(monkeypatch):
    looked_at = []
    instructions = dis.get_instructions
    monkeypatch.setattr(dis, "get_instructions", lambda code: looked_at.append(code.co_name) or instructions(code))

    def helper(x):
        return x + 1

    def make():
        def step(x):
            return helper(x)

        return step

    for _ in range(3):
        fl.jit(make())(X)
    assert looked_at == ["step", "helper"]


@pytest.mark.parametrize("on_metaclass", [False, True])
def test_methods_are_found_wherever_python_finds_them(on_metaclass):
    held = mx.array(1)

    class Meta(type):
        def shifted(cls, x):
            return x + held

    class Own:
        def shifted(self, x):
            return x + held

    given = Meta("Given", (), {})() if on_metaclass else type("Given", (Own,), {})()

    def step(x):
        return (type(given) if on_metaclass else given).shifted(x)

    assert captured(step) == [CAPTURED.format(fn="step", variables="held in shifted (i32[])")]


def test_code_is_not_kept_alive():
    def make():
        namespace = {}
        exec("def step(x):\n    return x + 1", namespace)
        return namespace["step"]

    step = make()
    code = weakref.ref(step.__code__)
    fl.jit(step)(X)
    del step
    gc.collect()
    assert code() is None


# What stands in classes and functions


class Names:
    w = X
    inner = type("Inner", (), {"scale": SCALE})
    number = 3

    @staticmethod
    def add(x):
        return x + weight

    @classmethod
    @fl.jit
    def times(cls, x):
        return x * cls.w[0]

    @property
    def other(self):
        return SCALE


class OwnNames(Names):
    pass


class WithConstant(fl.Module):
    weight: mx.array
    constant: ClassVar[mx.array] = SCALE
    unused: ClassVar[mx.array] = X

    def __call__(self, x):
        return x + self.constant[0]


class WithNumber(WithConstant):
    constant: ClassVar[tuple[int]] = (1,)


class Other(fl.Module):
    constant: mx.array

    def __call__(self, x):
        return x + self.constant[0]


def with_an_attribute(x):
    return x + with_an_attribute.w[0]


def plain(x):
    return x


with_an_attribute.w = plain.w = X

IN_CLASSES: dict[str, Any] = {
    "a class": (lambda x: x + Names.w, "Names.w (i32[2])"),
    "a subclass": (lambda x: x + OwnNames.w, "OwnNames.w (i32[2])"),
    "a class in a class": (lambda x: x + Names.inner.scale[0], "Names.inner.scale (f32[3])"),
    "a static method": (lambda x: Names.add(x), "weight in add (i32[])"),
    "getattr": (lambda x: x + getattr(Names, "w"), "Names.w (i32[2])"),  # noqa: B009
    "getattr of a module": (lambda x: x + getattr(USER, "SCALE")[0], "USER.SCALE (f32[3])"),  # noqa: B009
    "another function": (lambda x: x + plain.w[0], "plain.w (i32[2])"),
    "a number": (lambda x: x + Names.number, None),
    "what is made when read": (lambda x: (x, Names.other), None),
    "a name that is text": (lambda x: (x, Names, "w"), None),
    "a name that may not be": (lambda x: (x, getattr(Names, "none", "w")), None),
}


@pytest.mark.parametrize(("function", "variables"), IN_CLASSES.values(), ids=IN_CLASSES)
def test_what_stands_in_classes_and_functions_is_looked_at(function, variables):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fl.jit(function)(mx.zeros(2))
    assert [str(each.message) for each in caught] == ([] if variables is None else warned("<lambda>", variables))


def test_an_attribute_of_the_function_itself_is_looked_at():
    assert captured(with_an_attribute) == warned("with_an_attribute", "with_an_attribute.w (i32[2])")


def test_what_stands_in_the_class_of_a_class_method_is_looked_at():
    with pytest.warns(fl.CapturedArrayWarning) as caught:
        Names.times(X)
    assert [str(each.message) for each in caught] == warned("times", "Names.w (i32[2])")


@pytest.mark.parametrize("call", [lambda m, x: m(x), lambda m, x: x + m.constant[0]])
def test_what_stands_in_the_class_of_a_module_is_looked_at_if_it_is_read(call):
    def messages(*models):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fl.jit(lambda models, x: [call(m, x) for m in models])(models, mx.zeros(2))
        return [str(each.message) for each in caught]

    assert messages(Other(SCALE)) == messages(WithNumber(SCALE)) == []
    assert len(messages(WithConstant(SCALE))) == 1
    assert "WithConstant.constant (f32[3])" in messages(WithConstant(SCALE))[0]
    assert "unused" not in messages(WithConstant(SCALE))[0]


# Assignments


def test_an_assignment_that_is_lost_is_warned_of():
    model, other = SCALE, X

    def step(x):
        nonlocal model
        own = other
        model = model + own[0]
        return x

    message = CAPTURED.format(fn="step", variables="model (f32[3]), other (i32[2])") + LOST.format(fn="step", names="model")
    assert captured(step) == [message]


class Trainer:
    def __init__(self):
        self.model = MODEL


def test_an_assignment_to_an_attribute_that_is_lost_is_warned_of():
    trainer = Trainer()

    def step(x):
        trainer.model = trainer.model.apply(lambda each: each * 2)
        return x

    message = warned("step", "trainer.model (a Linear with 2 arrays)")[0] + LOST.format(fn="step", names="trainer.model")
    assert captured(step) == [message]


class Measuring:
    def __init__(self):
        self.model, self.held = MODEL, weight

    def width(self, x):
        return x * self.model.weight.shape[0] * self.held.ndim

    def value(self, x):
        return x * self.held * self.held.ndim


MODELS = fl.nn.Sequential(MODEL, MODEL)
STRUCTURE = {
    "the shape of a weight": lambda x: x * MODEL.weight.shape[0],
    "the shape in a helper": lambda x: width(x),
    "the number of dimensions": lambda x: x * X.ndim,
    "the size": lambda x: x * X.size,
    "the dtype": lambda x: x.astype(X.dtype),
    "the mode": lambda x: x if MODEL.training else -x,
    "the class": lambda x: (type(MODEL), x)[1],
    "the class of a field": lambda x: x if isinstance(MODEL.weight, mx.array) else -x,
    "the number of layers": lambda x: x * len(MODELS.layers),
    "an attribute of self": Measuring().width,
    "of an array in a function inside": lambda x: next(x * X.ndim for _ in range(1)),
}
VALUES_TOO = {
    "the shape and a value": (lambda x: x * MODEL.weight.shape[0] + MODEL.weight[0, 0], "MODEL (a Linear with 2 arrays)"),
    "the shape of another array": (lambda x: x * X.T.shape[0], "X (i32[2])"),
    "an array called like a shape": (lambda x: x * SIZED.size, "SIZED (a Sized with 1 array)"),
    "an item": (lambda x: x * X[0], "X (i32[2])"),
    "under another name": (lambda x: [x * each.size for each in [X]], "X (i32[2])"),
    "an attribute of self": (Measuring().value, "self.held (i32[])"),
}


class Sized(fl.Module):
    size: mx.array


SIZED = Sized(weight)


def width(x):
    return x * MODEL.bias.shape[0]


@pytest.mark.parametrize("function", STRUCTURE.values(), ids=STRUCTURE)
def test_what_is_structure_is_not_warned_of(function):
    assert captured(function) == []


@pytest.mark.parametrize(("function", "variables"), VALUES_TOO.values(), ids=VALUES_TOO)
def test_values_are_warned_of_where_structure_is_read_too(function, variables):
    assert captured(function) == warned(getattr(function, "__name__", ""), variables)
