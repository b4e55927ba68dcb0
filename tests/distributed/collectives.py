"""Checks of ordered collectives, run by each of several ranks."""

import functools
import gc
import math
import pickle
import threading

import attrs
import mlx.core as mx
import ranks

import frostleaf as fl
from frostleaf.transforms import collectives
from frostleaf.transforms.group import as_group, world

GROUP = world()
RANK, SIZE = GROUP.rank(), GROUP.size()
EVERY = SIZE * (SIZE + 1) // 2


class Layer(fl.Module):
    weight: mx.array
    group: object = fl.static()

    def __call__(self, x):
        return collectives.all_sum(x * self.weight, self.group)


def mine(value=1.0, size=3):
    return mx.full(size, value * (RANK + 1))


def check_group_is_a_value():
    assert SIZE > 1
    assert world() is GROUP is as_group(None) is as_group(mx.distributed.init())
    assert pickle.loads(pickle.dumps(GROUP)) is GROUP
    assert {GROUP: 1}[as_group(mx.distributed.init())] == 1
    assert repr(GROUP) == f"Group(rank={RANK}, size={SIZE})"


def check_each_collective():
    x = mine()
    assert collectives.all_sum(x).tolist() == [EVERY] * 3
    assert collectives.all_max(x, GROUP).tolist() == [SIZE] * 3
    assert collectives.all_min(x, GROUP.mlx).tolist() == [1] * 3
    assert collectives.all_gather(mx.array(RANK)).tolist() == list(range(SIZE))
    assert collectives.sum_scatter(mx.arange(2 * SIZE) + RANK).tolist() == [
        SIZE * at + SIZE * (SIZE - 1) // 2 for at in (2 * RANK, 2 * RANK + 1)
    ]
    for src in range(SIZE):
        assert collectives.broadcast(x, src).tolist() == [src + 1] * 3


def check_order_of_the_program_whatever_is_evaluated():
    sums = [collectives.all_sum(mine(n)) for n in range(1, 5)]
    for at in [[3, 0, 2, 1], [0, 1, 2, 3], [2, 3, 1, 0]][RANK % 3]:
        mx.eval(sums[at])
    assert [each.tolist() for each in sums] == [[EVERY * n] * 3 for n in range(1, 5)]


def check_order_of_a_wide_graph():
    """MLX goes through a wide graph in another way than through a narrow one."""
    inputs = [functools.reduce(lambda x, _: mx.sin(x), range(n % 7), mine(n)) for n in range(60)]
    sums = [collectives.all_sum(x) for x in inputs]
    if RANK == 0:
        mx.eval(sums[::-1])
    else:
        for each in sums:
            mx.eval(each)
    expected = [
        sum(functools.reduce(lambda x, _: math.sin(x), range(n % 7), n * (r + 1)) for r in range(SIZE)) for n in range(60)
    ]
    assert mx.allclose(mx.stack(sums)[:, 0], mx.array(expected), atol=1e-4)


def check_a_result_that_nobody_looks_at():
    logged = collectives.all_sum(mine(7.0))
    if RANK == 0:
        assert logged[0].item() == 7 * EVERY
    assert collectives.all_sum(mine(2.0)).tolist() == [2 * EVERY] * 3


def check_jit_hands_the_order_on():
    @fl.jit
    def step(x, y):
        a = collectives.all_sum(x)
        return a, collectives.all_sum(y * 2), x + 1

    for call in range(1, 4):
        before = collectives.all_sum(mine(10.0 * call))
        a, b, c = step(mine(call), mine(call))
        after = collectives.all_sum(mine(20.0 * call))
        found = [before, a, b, after]
        for at in [[3, 0, 2, 1], [0, 1, 2, 3], [2, 1, 3, 0]][RANK % 3]:
            mx.eval(found[at])
        assert [each[0].item() / EVERY for each in found] == [10 * call, call, 2 * call, 20 * call]
        assert c.tolist() == mine(call).tolist() or c[0].item() == call * (RANK + 1) + 1
    assert step.trace_count == 1


def check_jit_in_jit_and_without_an_exchange():
    inner = fl.jit(lambda x: collectives.all_sum(x))
    outer = fl.jit(lambda x: (inner(x), inner(x * 2)))
    before = collectives.tokens()[0]
    assert fl.jit(lambda x: x + 1)(mx.array(1)).item() == 2
    assert collectives.tokens()[0] is before
    a, b = outer(mine())
    c = collectives.all_sum(mine(3.0))
    for each in [[c, a, b], [b, a, c]][RANK % 2]:
        mx.eval(each)
    assert (a[0].item(), b[0].item(), c[0].item()) == (EVERY, 2 * EVERY, 3 * EVERY)
    assert outer.trace_count == 1


def check_gradients_are_in_order():
    def loss(x):
        first = collectives.all_sum(x * x)
        return (first * collectives.all_sum(x)).sum()

    # Cotangents pass through: d/dx of s2 s1 is 2 x s1 + s2.
    x = mine()
    value, grad = fl.value_and_grad(loss)(x)
    total = collectives.all_sum(grad)
    squares = sum((r + 1) ** 2 for r in range(SIZE))
    for each in [[total, value, grad], [grad, value, total]][RANK % 2]:
        mx.eval(each)
    assert grad[0].item() == 2 * (RANK + 1) * EVERY + squares
    assert total[0].item() == sum(2 * (r + 1) * EVERY + squares for r in range(SIZE))
    again = fl.jit(fl.grad(loss))(x)
    assert fl.tree.equal(again, grad)
    assert fl.tree.equal(fl.grad(lambda x: fl.grad(loss)(x).sum())(x), 2 * mx.full(3, EVERY) + 4 * x)


def check_checkpoint_communicates_again_in_order():
    def inner(x):
        return collectives.all_sum(x * x) * x

    x = mine()
    plain = fl.grad(lambda x: inner(inner(x)).sum())(x)
    checkpointed = fl.grad(lambda x: fl.checkpoint(inner)(fl.checkpoint(inner)(x)).sum())(x)
    after = collectives.all_sum(x)
    for each in [[after, plain, checkpointed], [checkpointed, plain, after]][RANK % 2]:
        mx.eval(each)
    assert fl.tree.equal(plain, checkpointed)
    assert after[0].item() == EVERY


def check_mapped_functions_exchange_once_for_all():
    many = mx.arange(6.0).reshape(3, 2) + RANK
    before = collectives.all_sum(mine())
    for axis in (0, 1):
        for exchange in (collectives.all_sum, collectives.all_average, collectives.all_max, collectives.all_gather):
            found = fl.vmap(exchange, axis, axis)(many)
            after = collectives.all_sum(mine(2.0))
            if RANK:
                mx.eval(after)
            parts = [many[n] for n in range(3)] if axis == 0 else [many[:, n] for n in range(2)]
            assert fl.tree.equal(found, mx.stack([exchange(part) for part in parts], axis)), (axis, exchange)
    nested = fl.vmap(fl.vmap(collectives.all_sum))(many)
    assert fl.tree.equal(nested, collectives.all_sum(many))
    assert fl.tree.equal(fl.jit(fl.vmap(lambda x: fl.distributed.all_sum({"x": x})))(many)["x"], nested)
    squared = fl.vmap(fl.grad(lambda x: collectives.all_sum(x * x).sum()))(many)
    assert fl.tree.equal(squared, 2 * many)
    assert before.tolist() == [EVERY] * 3


def check_tangents_are_exchanged_in_order():
    x, along = mine(), mine(10.0)
    for fn in (lambda x: collectives.all_sum(x * x), fl.jit(lambda x: collectives.all_sum(x * x))):
        value, tangent = fl.jvp(fn, (x,), (along,))
        after = collectives.all_sum(x)
        for each in [[after, value, tangent], [tangent, value, after]][RANK % 2]:
            mx.eval(each)
        squares = sum((r + 1) ** 2 for r in range(SIZE))
        assert (value[0].item(), tangent[0].item(), after[0].item()) == (squares, 20 * squares, EVERY)
    # Cotangents pass through: the gradient of s is 3 x^2, that of s^2 is 6 x^2 s.
    cubes = sum((r + 1) ** 3 for r in range(SIZE))
    grad = fl.grad(lambda x: (collectives.all_sum(x**3) ** 2).sum())
    value, tangent = fl.jvp(grad, (x,), (mx.ones(3),))
    changes = sum(3 * (r + 1) ** 2 for r in range(SIZE))
    assert mx.allclose(value, 6 * x**2 * cubes)
    assert mx.allclose(tangent, 12 * x * cubes + 6 * x**2 * changes)


def check_an_exception_leaves_the_order_whole():
    def fails(x):
        collectives.all_sum(x)
        raise ArithmeticError

    before = collectives.tokens()[0]
    for transformed in (fl.jit(fails), fl.jit(fl.grad(fails)), lambda x: fl.eval_shape(fails, x)):
        try:
            transformed(mine())
        except ArithmeticError:
            pass
        else:
            raise AssertionError
        assert collectives.tokens()[0] is before
    assert fl.eval_shape(collectives.all_sum, mine()) == fl.ShapeDtypeStruct((3,), mx.float32)
    assert collectives.tokens()[0] is before
    assert collectives.all_sum(mine()).tolist() == [EVERY] * 3


def check_a_group_in_a_field_never_retraces():
    step = fl.jit(lambda layer, x: layer(x))
    for group in (GROUP, pickle.loads(pickle.dumps(GROUP)), as_group(mx.distributed.init())):
        layer = Layer(weight=mx.array(2.0), group=group)
        assert step(layer, mine()).tolist() == [2 * EVERY] * 3
    assert step.trace_count == 1
    assert fl.tree.structure(layer) == fl.tree.structure(pickle.loads(pickle.dumps(layer)))
    assert attrs.has(type(GROUP))


def check_other_threads_have_their_own_order():
    pending = collectives.all_sum(mine())
    found = []
    mx.eval(pending)
    thread = threading.Thread(target=lambda: found.append(collectives.all_sum(mine(5.0)).tolist()))
    thread.start()
    thread.join()
    assert found == [[5 * EVERY] * 3]
    assert collectives.all_sum(mine()).tolist() == [EVERY] * 3


def peak_of(fn, *args):
    """Return the most memory that calling a function takes, and what stays once the result is gone."""
    fl.eval(args, collectives.tokens(), fn(*args))
    gc.collect()
    mx.clear_cache()
    begun = mx.get_active_memory()
    mx.reset_peak_memory()
    out = fn(*args)
    fl.eval(out)
    highest = mx.get_peak_memory() - begun
    del out
    return highest, mx.get_active_memory() - begun


def check_the_order_costs_no_memory():
    size, small = 1 << 20, 1 << 16
    x = mine(size=size)

    def averaged(average):
        return lambda x: [average(x + n) for n in range(4)]

    plain = peak_of(averaged(lambda x: mx.distributed.all_sum(x) / SIZE), x)
    for fn in (averaged(collectives.all_average), fl.jit(averaged(collectives.all_average))):
        highest, left = peak_of(fn, x)
        assert highest <= plain[0] + small, (highest, plain)
        assert left <= small, left
    highest, left = peak_of(lambda x: collectives.sum_scatter(x + 1), x)
    assert highest <= x.nbytes + x.nbytes // SIZE + small
    kept = collectives.sum_scatter(x + 1)
    begun = mx.get_active_memory()
    mx.eval(kept)
    assert mx.get_active_memory() - begun <= x.nbytes // SIZE + small


def check_stages_are_what_a_later_exchange_waits_for():
    large = mine(size=1 << 19)
    fl.distributed.eval()

    def two(x):
        return collectives.all_sum(x), collectives.all_sum(x[:3]), collectives.all_sum(x * 2)

    def waiting(x):
        results = two(x)
        collectives.add_stages()
        return results

    assert collectives.stages() == ()
    for fn in (two, fl.jit(two)):
        fn(large)
        assert collectives.stages() == ()
    for fn in (waiting, fl.jit(waiting), fl.jit(fl.jit(waiting)), fl.jit(lambda x: waiting(fl.vmap(mx.sin)(x)))):
        fl.distributed.eval()
        for call in (1, 2):
            fn(large.reshape(-1, 4))
            assert len(collectives.stages()) == 2 * call
    pending = waiting(large)
    fl.distributed.eval(collectives.all_sum(mine()))
    assert collectives.stages() == ()
    assert [each[0].item() for each in pending] == [EVERY, EVERY, 2 * EVERY]


def check_stages_of_what_fails_are_forgotten():
    large = mine(size=1 << 19)

    def fails(x):
        collectives.all_sum(x)
        collectives.add_stages()
        raise ArithmeticError

    fl.distributed.eval()
    for transformed in (fl.jit(fails), fl.vmap(fails), lambda x: fl.eval_shape(fails, x)):
        ranks.error_of(lambda: transformed(large), ArithmeticError)  # noqa: B023
        assert collectives.stages() == ()
    fl.distributed.eval(collectives.all_sum(large))


if __name__ == "__main__":
    ranks.run(globals())
