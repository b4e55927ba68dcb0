"""rng and next_key: random numbers from a key, and MLX's own state left as it was."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.random import ELSEWHERE, INTERLEAVED, OUT_OF_ORDER, restore_state, saved_state

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


# Tasks, generators, other threads


def drawn(seed):
    with fl.rng(mx.random.key(seed)):
        return draw()


async def draws_after_awaiting(seed):
    with fl.rng(mx.random.key(seed)):
        await asyncio.sleep(0)
        return draw()


def test_a_task_inside_keeps_others_out():
    mx.random.seed(8)
    before = state()

    async def both():
        return await asyncio.gather(*map(draws_after_awaiting, (1, 2, 3)), return_exceptions=True)

    found = asyncio.run(both())
    assert found[0] == drawn(1)
    assert [str(each) for each in found[1:]] == [INTERLEAVED] * 2
    assert state() == before


@pytest.mark.parametrize(
    "other",
    [
        fl.next_key,
        lambda: fl.nn.Linear(3, 2),
        lambda: fl.nn.Embedding(3, 2),
        lambda: fl.nn.Dropout(0.5)(mx.ones(4)),
        lambda: fl.jit(lambda x: x + mx.random.uniform())(mx.ones(4)),
    ],
    ids=["next_key", "Linear", "Embedding", "Dropout", "jit"],
)
def test_what_another_task_draws_is_not_taken_from_the_key(other):
    mx.random.seed(8)
    before, tried = state(), []

    async def others():
        tried.append(state())
        with pytest.raises(RuntimeError) as raised:
            other()
        assert str(raised.value) == INTERLEAVED
        tried.append(state())

    async def both():
        return await asyncio.gather(draws_after_awaiting(1), others())

    assert asyncio.run(both()) == [drawn(1), None]
    assert tried[0] == tried[1]
    assert state() == before
    other()


def test_a_task_that_gives_its_own_key_is_let_in():
    async def others():
        return fl.nn.Linear(3, 2, key=KEY), fl.nn.Dropout(0.5)(mx.ones(4), key=KEY)

    async def both():
        return await asyncio.gather(draws_after_awaiting(1), others())

    found, (linear, dropped) = asyncio.run(both())
    assert found == drawn(1)
    assert fl.tree.equal((linear, dropped), asyncio.run(others()))


def test_tasks_one_after_the_other_and_tasks_inside_draw_from_their_keys():
    async def one_by_one():
        with fl.rng(KEY):
            return [await asyncio.create_task(draws_after_awaiting(seed)) for seed in (1, 2)]

    assert asyncio.run(one_by_one()) == [drawn(1), drawn(2)]


def batches(seed):
    with fl.rng(mx.random.key(seed)):
        while True:
            yield draw()


def test_a_generator_that_is_closed_puts_the_state_back():
    mx.random.seed(8)
    before, stream = state(), batches(1)
    assert next(stream) == drawn(1)
    stream.close()
    assert state() == before


@pytest.mark.parametrize("first", [0, 1, 2])
def test_blocks_left_in_another_order_put_the_state_back_with_the_last(first):
    mx.random.seed(8)
    before = state()
    blocks = [fl.rng(mx.random.key(seed)) for seed in range(3)]
    for block in blocks:
        block.__enter__()
    inside = [0, 1, 2]
    for number in (first, *[each for each in (2, 1, 0) if each != first]):
        if number == inside[-1]:
            blocks[number].__exit__(None, None, None)
        else:
            with pytest.raises(RuntimeError) as raised:
                blocks[number].__exit__(None, None, None)
            assert str(raised.value) == OUT_OF_ORDER
        inside.remove(number)
    assert state() == before
    assert drawn(1) == drawn_from(1, 1)[0]


def test_generators_that_are_closed_in_another_order_put_the_state_back():
    mx.random.seed(8)
    before = state()
    streams = [batches(seed) for seed in range(3)]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()
    assert state() == before


def test_a_generator_that_is_collected_in_a_cycle_puts_the_state_back():
    mx.random.seed(8)
    before = state()

    def endless(held):
        with fl.rng(KEY):
            yield held

    held = []
    held.append(endless(held))
    next(held[0])
    del held
    gc.collect()
    assert state() == before


def test_a_context_manager_with_a_block_inside():
    @contextlib.contextmanager
    def seeded(seed):
        with fl.rng(mx.random.key(seed)):
            yield seed

    mx.random.seed(8)
    before = state()
    with seeded(1) as one, seeded(2):
        assert (one, draw()) == (1, drawn(2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(fl.rng(KEY))
        stack.enter_context(seeded(1))
        assert draw() == drawn(1)
    assert state() == before


def test_a_block_left_in_another_thread_is_refused_and_put_back_later():
    mx.random.seed(8)
    before, block, errors = state(), fl.rng(KEY), []
    block.__enter__()

    def leave():
        try:
            block.__exit__(None, None, None)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert errors == [ELSEWHERE]
    with fl.rng(KEY):
        pass
    assert state() == before


SUSPENDED = """
import frostleaf as fl, mlx.core as mx
def batches(key):
    with fl.rng(key):
        while True:
            yield mx.random.normal((4,))
held = [batches(mx.random.key(seed)) for seed in range(3)]
for each in held:
    next(each)
block = fl.rng(mx.random.key(5))
block.__enter__()
block.held = block
"""


def test_what_is_suspended_inside_does_not_end_the_process():
    run = subprocess.run([sys.executable, "-c", SUSPENDED], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")


IN_THREADS = """
import threading
from concurrent.futures import ThreadPoolExecutor
import frostleaf as fl, mlx.core as mx

jitted = fl.jit(lambda x: mx.exp(x) * 2 + 1)
drawn = fl.jit(lambda x: x + mx.random.normal((4, 2)))

def work(fn=jitted):
    mx.eval(fn(mx.ones((4, 2))))

def in_thread(fn):
    thread = threading.Thread(target=work, args=(fn,))
    thread.start()
    thread.join()

"""
ENDS = {
    "a thread": "in_thread(jitted)",
    "a thread after the main one": "work(); in_thread(jitted)",
    "a thread that draws": "in_thread(drawn)",
    "a thread that builds a layer": "in_thread(lambda x: fl.nn.Linear(2, 2)(x))",
    "a pool": "with ThreadPoolExecutor(3) as pool: list(pool.map(work, [jitted, drawn] * 4))",
    "an open pool": "pool = ThreadPoolExecutor(3); list(pool.map(work, [jitted, drawn] * 4))",
}


@pytest.mark.parametrize("last", ENDS.values(), ids=ENDS)
def test_the_process_ends_well_after_work_in_other_threads(last):
    for _ in range(4):
        run = subprocess.run([sys.executable, "-c", IN_THREADS + last], capture_output=True, text=True, timeout=120)
        assert (run.returncode, run.stderr) == (0, "")
