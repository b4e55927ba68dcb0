"""rng and next_key: random numbers from a key, and MLX's own state left as it was."""

import threading

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.random import restore_state, saved_state

NOT_A_KEY = "fl.rng takes one key, u32[2], as from mx.random.key(seed), and was given {given}"

KEY = mx.random.key(3)


def draw():
    return mx.random.permutation(4096)[:3].tolist()


def state():
    return mx.random.state[0].tolist()


def drawn_from(seed, count=2):
    mx.random.seed(seed)
    return [draw() for _ in range(count)]


def test_a_key_gives_what_the_seed_gives():
    expected = drawn_from(3)
    mx.random.seed(8)
    with fl.rng(KEY):
        assert [draw(), draw()] == expected
    with fl.rng(mx.random.key(3)):
        assert [draw(), draw()] == expected


def test_after_the_context_the_state_is_what_it_was():
    expected = drawn_from(8, 3)
    mx.random.seed(8)
    found = [draw()]
    for _ in range(2):
        with fl.rng(KEY) as nothing:
            draw()
        assert nothing is None
        found.append(draw())
    assert found == expected


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_restores_the_state(error):
    mx.random.seed(8)
    before = state()
    with pytest.raises(error), fl.rng(KEY):  # noqa: PT012
        draw()
        raise error
    assert state() == before


def test_contexts_nest():
    with fl.rng(KEY):
        expected = [draw(), draw()]
    with fl.rng(KEY):
        found = [draw()]
        with fl.rng(mx.random.key(9)):
            inner = draw()
        found.append(draw())
    assert found == expected
    assert inner == drawn_from(9, 1)[0]


def test_seeding_inside_does_not_reach_outside():
    mx.random.seed(8)
    before = state()
    with fl.rng(KEY):
        mx.random.seed(1)
        assert draw() == drawn_from(1, 1)[0]
    assert state() == before


def test_the_key_that_was_given_is_not_written_to():
    key = mx.random.key(3)
    with fl.rng(key):
        held = mx.random.state[0]
        for _ in range(3):
            draw()
            fl.next_key()
    assert key.tolist() == KEY.tolist()
    assert held.shape == (2,)


def test_a_state_that_somebody_holds_is_not_written_to():
    mx.random.seed(8)
    held, saved = mx.random.state[0], saved_state()
    before = held.tolist()
    with fl.rng(KEY):
        draw()
    restore_state(KEY)
    assert held.tolist() == before
    assert saved.tolist() == before
    restore_state(saved)
    assert state() == before


def test_it_can_decorate_a_function():
    @fl.rng(KEY)
    def decorated():
        return draw()

    assert decorated() == decorated() == drawn_from(3, 1)[0]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (7, "7"),
        (None, "None"),
        ("key", "'key'"),
        ([0, 7], "[0, 7]"),
        (mx.array([0, 7]), "i32[2]"),
        (mx.array([0, 7, 1], mx.uint32), "u32[3]"),
        (mx.random.split(KEY), "u32[2,2]"),
        (mx.array(7, mx.uint32), "u32[]"),
    ],
)
def test_what_is_not_a_key_is_refused_and_changes_nothing(given, shown):
    mx.random.seed(8)
    before = state()
    with pytest.raises(TypeError) as raised, fl.rng(given):
        pass
    assert str(raised.value) == NOT_A_KEY.format(given=shown)
    assert state() == before


def test_next_key_is_the_key_of_the_next_draw():
    expected = drawn_from(8, 3)
    mx.random.seed(8)
    found = [mx.random.permutation(4096, key=fl.next_key())[:3].tolist() for _ in range(2)]
    assert [*found, draw()] == expected
    with fl.rng(KEY):
        first, second = fl.next_key(), fl.next_key()
    assert (first.shape, first.dtype) == ((2,), mx.uint32)
    assert first.tolist() != second.tolist()
    with fl.rng(KEY):
        assert fl.next_key().tolist() == first.tolist()


def test_layers_draw_from_the_key():
    def build():
        return fl.nn.Linear(3, 2), fl.nn.Dropout(0.5)(mx.ones(64))

    mx.random.seed(3)
    expected = build()
    with fl.rng(KEY):
        assert fl.tree.equal(build(), expected)


def test_each_row_of_a_vmap_has_its_own_key():
    def with_key(key, x):
        with fl.rng(key):
            return mx.random.permutation(4096)[:3] + x

    keys, x = mx.random.split(KEY, 4), mx.zeros(3, mx.uint32)
    before = state()
    rows = mx.vmap(with_key, in_axes=(0, None))(keys, x)
    assert rows.tolist() == [with_key(key, x).tolist() for key in keys]
    assert state() == before


def test_a_gradient_can_be_taken_inside_and_outside():
    def loss(w):
        with fl.rng(KEY):
            return (w * mx.random.permutation(4)).sum()

    w = mx.ones(4)
    assert fl.grad(loss)(w).tolist() == mx.random.permutation(4, key=mx.random.split(KEY)[1]).tolist()
    with fl.rng(mx.random.key(9)):
        assert fl.tree.equal(fl.grad(loss)(w), mx.grad(loss)(w))


def test_threads_do_not_see_each_others_keys():
    expected, inside, found = drawn_from(5, 1)[0], threading.Event(), []

    def other():
        mx.random.seed(5)
        inside.wait(10)
        found.append(draw())

    thread = threading.Thread(target=other)
    thread.start()
    with fl.rng(KEY):
        inside.set()
        thread.join()
        assert draw() == drawn_from(3, 1)[0]
    assert found == [expected]
