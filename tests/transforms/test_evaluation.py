"""eval and async_eval of whole trees, in one go and piece by piece."""

import functools
import io

import mlx.core as mx
import pytest

import frostleaf as fl

BAD_SIZE = "at_once is a number of bytes, 0 or more, and was {given!r}"

IN_PIECES = {"piece by piece": functools.partial(fl.eval, at_once=0), "a few at once": functools.partial(fl.eval, at_once=8)}
every_way = pytest.mark.parametrize(
    "function", [fl.eval, fl.async_eval, *IN_PIECES.values()], ids=["eval", "async_eval", *IN_PIECES]
)

TREES = {
    "nothing": (),
    "None": (None,),
    "static values": (1, "text", len, {"a": 2.0}),
    "an array": (mx.ones(2) + 1,),
    "a module": (fl.nn.Linear(2, 2),),
    "several trees": ([mx.ones(2) + 1, {"a": (mx.zeros(3) * 2, None)}], fl.nn.BatchNorm(2), 3),
    "an empty array": (mx.zeros((0,)) + 1,),
    "empty arrays between others": ([mx.zeros((0,)) + 1, mx.ones(2) + 1, mx.zeros((2, 0)) + 1, mx.zeros((0,)) + 1],),
    "an array at several places": ((SHARED := mx.ones(3) + 1), [SHARED, {"a": SHARED}]),
    "a packed model": (fl.optim.pack(fl.nn.Linear(2, 2)),),
}


@every_way
@pytest.mark.parametrize("trees", TREES.values(), ids=TREES)
def test_any_trees_can_be_evaluated(function, trees):
    before = fl.tree.leaves(trees)
    assert function(*trees) is None
    assert all(after is leaf for after, leaf in zip(fl.tree.leaves(trees), before, strict=True))
    mx.eval(before)


def test_what_was_evaluated_needs_no_computation_any_more():
    total = mx.zeros(1000)
    for _ in range(10):
        total = total + 1
    fl.eval({"total": [total]})
    assert total.tolist() == [10.0] * 1000


@every_way
def test_an_array_of_a_trace_can_not_be_evaluated_and_the_next_call_works(function):
    evaluating = fl.jit(lambda x, stop: (function({"x": x + x}) if stop else None, x)[1])
    with pytest.raises(ValueError, match="eval"):
        evaluating(mx.ones(2), True)
    assert evaluating(mx.ones(2), False).tolist() == [1.0, 1.0]
    assert mx.random.normal((2,)).shape == (2,)


# Piece by piece


def waits(array):
    """Return whether there is something left to compute: the graph of an array that is computed has no operation in it."""
    graph = io.StringIO()
    mx.export_to_dot(graph, array)
    return "shape=rectangle" in graph.getvalue()


def lazy_tree():
    return {"a": [mx.ones(n) + n for n in range(5)], "model": fl.nn.Linear(2, 2).astype(mx.float16), "n": 3, "none": (None,)}


@pytest.mark.parametrize("at_once", [None, 0, 1, 7, 8, 20, 10**12, 8.5, float("inf")])
def test_everything_is_computed(at_once):
    tree, more = lazy_tree(), mx.ones(3) * 2
    leaves = [*fl.tree.leaves(tree), more]
    assert all(waits(leaf) for leaf in leaves)
    fl.eval(tree, None, more, at_once=at_once)
    assert not any(waits(leaf) for leaf in leaves)
    assert fl.tree.leaves(tree)[4].tolist() == [5.0] * 4


@pytest.mark.parametrize(
    ("at_once", "pieces"),
    [
        (float("inf"), [[4, 8, 0, 40, 4, 4, 0]]),
        (0, [[4], [8], [0], [40], [4], [4], [0]]),
        (3, [[4], [8], [0], [40], [4], [4], [0]]),
        (4, [[4], [8], [0], [40], [4], [4, 0]]),
        (8, [[4], [8, 0], [40], [4, 4, 0]]),
        (12, [[4, 8, 0], [40], [4, 4, 0]]),
        (43, [[4, 8, 0], [40], [4, 4, 0]]),
        (44, [[4, 8, 0], [40, 4], [4, 0]]),
        (60, [[4, 8, 0, 40, 4, 4, 0]]),
    ],
)
def test_no_more_than_asked_for_is_computed_at_once_and_in_order(monkeypatch, at_once, pieces):
    arrays = [mx.ones(size) + 1 for size in (1, 2, 0, 10, 1, 1, 0)]
    evaluate, seen = mx.eval, []
    monkeypatch.setattr(mx, "eval", lambda piece: (seen.append(list(piece)), evaluate(piece)))
    fl.eval(arrays[:3], {"a": arrays[3], "rest": tuple(arrays[4:])}, at_once=at_once)
    assert [[each.nbytes for each in piece] for piece in seen] == pieces
    assert all(each is array for each, array in zip([each for piece in seen for each in piece], arrays, strict=True))


@pytest.mark.parametrize(
    ("device", "nbytes", "pieces"),
    [(mx.cpu, 2**20, [2, 2, 1]), (mx.gpu, 2**20, [5]), (mx.gpu, 2**27, [2, 2, 1])],
    ids=["cpu", "gpu", "gpu, large"],
)
def test_pieces_are_the_default_where_waiting_for_them_costs_nothing(monkeypatch, device, nbytes, pieces):
    evaluate, seen = mx.eval, []
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device, 0))
    monkeypatch.setattr(mx, "eval", lambda piece: (seen.append(len(piece)), evaluate(piece)))
    fl.eval([mx.broadcast_to(mx.zeros(1, mx.uint8), (nbytes,)) for _ in range(5)])
    assert seen == pieces


def test_building_needs_no_more_memory_than_the_model_and_one_layer():
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = [fl.nn.Linear(1024, 1024, dtype=mx.bfloat16) for _ in range(24)]
    fl.eval(model)
    assert mx.get_peak_memory() - before <= 1.1 * fl.tree.nbytes(model) + fl.tree.nbytes(model[0])


def test_what_is_computed_may_depend_on_what_comes_later():
    first = mx.ones(2) + 1
    chain = [first + 1, first]
    chain += [chain[0] + chain[1]]
    fl.eval(chain[::-1], at_once=0)
    assert [each.tolist() for each in chain] == [[3.0, 3.0], [2.0, 2.0], [5.0, 5.0]]


def test_a_generator_is_a_static_value():
    generator = (each for each in [mx.ones(2) + 1])
    fl.eval(generator, at_once=0)
    assert waits(next(generator))


@pytest.mark.parametrize("given", [-1, -0.5, -(10**12), float("nan"), "1 MB", [0]], ids=repr)
def test_what_is_no_number_of_bytes_is_refused(given):
    array = mx.ones(2) + 1
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        fl.eval(array, at_once=given)
    assert str(raised.value) == BAD_SIZE.format(given=given)
    assert waits(array)


class FailureError(Exception):
    pass


def test_an_error_on_the_way_leaves_the_rest_to_be_computed_later(monkeypatch):
    arrays, evaluate, calls = [mx.ones(2) + n for n in range(3)], mx.eval, []

    def failing(piece):
        calls.append(piece)
        if len(calls) == 2:
            raise FailureError
        evaluate(piece)

    with monkeypatch.context() as patched:
        patched.setattr(mx, "eval", failing)
        with pytest.raises(FailureError):
            fl.eval(arrays, at_once=0)
    assert [waits(array) for array in arrays] == [False, True, True]
    fl.eval(arrays, at_once=0)
    assert not any(waits(array) for array in arrays)


def peak_of_a_step(compiled, at_once):
    """Return the most memory, over what it was, that a step of Adam takes on a model of a few larger arrays."""
    optimizer = fl.optim.Adam(0.1)

    def step(model, state):
        return optimizer.update(model, model, state)

    function = fl.jit(step) if compiled else step
    model = [mx.full((384, 384), 0.5 + n) for n in range(6)]
    now = [model, optimizer.init(model)]
    del model
    fl.eval(now)
    for _ in range(2):
        now[:] = function(*now)
        fl.eval(now, at_once=at_once)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    now[:] = function(*now)
    fl.eval(now, at_once=at_once)
    return (mx.get_peak_memory() - before) / now[0][0].nbytes


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jitted"])
def test_piece_by_piece_a_step_needs_much_less_memory(compiled):
    array = 384 * 384 * 4
    whole, pieces, some = (peak_of_a_step(compiled, at_once) for at_once in (float("inf"), 0, 2 * array))
    assert pieces < 0.5 * whole
    assert pieces <= some < whole
