"""What a class may inherit, hold or be given that would read otherwise than it was stored."""

import stat

import attrs
import mlx.core as mx
import mlx.nn as nn
import pytest

import frostleaf as fl


class Base(fl.Module):
    n: int = fl.static(default=1)
    w: mx.array = fl.parameter(factory=lambda: mx.ones(1))


class Overriding(Base):
    n = 5


def double(module):
    return fl.tree.map(lambda leaf: leaf * 2, module)


def test_a_class_attribute_of_a_fields_name_is_not_read_in_place_of_the_field():
    module = Overriding(7)
    assert (module.n, fl.jit(double)(module).n, double(module).n) == (7, 7, 7)


@pytest.mark.parametrize("abstract", [False, True])
def test_a_field_that_a_base_class_hides_by_a_property_is_refused(abstract):
    class Hiding(fl.Module):
        @property
        def w(self):
            return None

    with pytest.raises(TypeError, match="'w', and a base class has a property"):

        class Field(Hiding):
            w: mx.array


@attrs.define
class Slotted:
    a: int = 1


@pytest.mark.parametrize("base", [Exception, nn.Module, int, Slotted])
def test_a_base_with_a_memory_layout_of_its_own_is_refused_by_python(base):
    with pytest.raises(TypeError, match="lay-out conflict"):
        type("Odd", (fl.Module, base), {})


class Batch(dict):
    pass


class Rows(list):
    pass


@pytest.mark.parametrize(
    "value", [nn.Linear(1, 1), nn.ReLU(), Batch(x=mx.ones(1)), Rows([mx.ones(1)])], ids=lambda v: type(v).__name__
)
def test_a_container_that_is_no_tree_is_refused_with_advice(value):
    advice = "fl.nn" if isinstance(value, nn.Module) else "register_pytree_node"
    with pytest.raises(TypeError, match=f"can't look into.*{advice}"):
        fl.nn.Sequential(value)
    with pytest.raises(TypeError, match="can't be hashed"):
        fl.jit(lambda given: None)(value)


def test_in_init_a_missing_name_is_an_attribute_error_and_a_default_can_be_read():
    seen = []

    class Reading(fl.Module):
        w: mx.array
        n: int = fl.static(default=3)

        def __init__(self):
            seen.extend([hasattr(self, "w"), getattr(self, "other", None), self.n])
            self.w = mx.ones(self.n)

    assert Reading().w.shape == (3,)
    assert seen == [False, None, 3]


def test_a_mixins_getattr_is_asked_for_names_that_are_not_there():
    class Mixin:
        def __getattr__(self, name):
            if name == "anything":
                return 1
            raise AttributeError(name)

    class Mixed(fl.Module, Mixin):
        w: mx.array

    late = fl.jit(double)(Mixed(mx.ones(1)))
    assert late.anything == 1
    assert late.w.tolist() == [2.0]
    assert not hasattr(late, "other")


@pytest.mark.parametrize("hold", [lambda layer: layer.__call__, lambda layer: __import__("functools").partial(layer)])
def test_an_array_behind_a_static_callable_is_found(hold):
    class Holder(fl.Module):
        f: object = fl.static()

    with pytest.raises(TypeError, match="static field and was given an array"):
        Holder(hold(fl.nn.Linear(1, 1)))


def test_the_mode_can_not_be_assigned_and_the_error_says_how_to_change_it():
    with pytest.raises(AttributeError, match=r"\.train\(mode\)"):
        fl.nn.Dropout().training = False


def test_freezing_many_arrays_in_one_container_takes_a_step_for_each():
    class Many(fl.Module):
        ws: tuple

    many = Many([mx.ones(1)] * 3000).freeze()
    after = many.at("ws.5").unfreeze()
    assert [index for index, value in enumerate(after.trainable_parameters()["ws"]) if isinstance(value, mx.array)] == [5]


def test_saving_writes_through_a_link_and_keeps_the_permissions(tmp_path):
    target, link = tmp_path / "target.npz", tmp_path / "link.npz"
    layer = fl.nn.Linear(1, 1)
    layer.save_weights(target)
    target.chmod(0o640)
    link.symlink_to(target)
    other = fl.nn.Linear(1, 1)
    other.save_weights(link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert fl.tree.equal(layer.load_weights(target), other)


def test_a_predicate_of_one_argument_is_refused_before_it_is_called():
    with pytest.raises(TypeError, match="can't select by"):
        fl.nn.Linear(1, 1).at(lambda model: model.weight)


def test_a_frozen_teacher_is_averaged_with_its_student():
    student = fl.nn.Sequential(fl.nn.Linear(1, 1), fl.nn.BatchNorm(1))
    teacher = student.freeze().eval()
    after = fl.tree.map(lambda old, new: 0.5 * old + 0.5 * new, teacher, student.apply(lambda leaf: leaf + 2))
    assert fl.tree.structure(after) == fl.tree.structure(teacher)
    assert fl.tree.allclose(after, teacher.apply(lambda leaf: leaf + 1), atol=1e-6)
