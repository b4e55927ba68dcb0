"""How a module looks in text."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama as theirs

import frostleaf as fl
from frostleaf.display.text import WIDTH, text


class Linear(fl.Module):
    weight: Any
    bias: Any = None
    size: Any = fl.static(default=2)


class Net(fl.Module):
    layers: Any
    table: Any = None
    rate: Any = fl.static(default=0.5)


class Nothing(fl.Module):
    pass


class Pair(NamedTuple):
    left: Any
    right: Any


def linear() -> Linear:
    return Linear(mx.zeros((2, 3)), mx.zeros(2, mx.bfloat16))


@pytest.mark.parametrize(
    "make", [Net, lambda inner: Net([inner]), lambda inner: Net({"a": inner})], ids=["field", "list", "dict"]
)
def test_a_deep_model_is_cut(make: Any) -> None:
    sizes = []
    for levels in (10, 100, 200):
        model: Any = linear()
        for _ in range(levels):
            model = make(model)
        sizes.append(len(repr(model)))
        assert ("(...)" in repr(model)) == (levels > 10)
    assert sizes[1] == sizes[2] < 10_000


SHOWN: list[tuple[Any, str]] = [
    (Nothing(), "Nothing()"),
    (linear(), "Linear(weight=f32[2,3], bias=bf16[2], size=2)"),
    (Linear(None), "Linear(weight=None, bias=None, size=2)"),
    (Linear(3, "text", len), "Linear(weight=3, bias='text', size=len)"),
    (Linear([mx.array(1)]), "Linear(weight=(i32[],), bias=None, size=2)"),
    (Linear([mx.array(1), 2], ()), "Linear(weight=(i32[], 2), bias=(), size=2)"),
    (Linear({"b": mx.array(1), 1: {}}), "Linear(weight={'b': i32[], 1: {}}, bias=None, size=2)"),
    (Linear(None, None, (1, {"a": [2.5]})), "Linear(weight=None, bias=None, size=(1, {'a': (2.5,)}))"),
    (Linear(None, None, mx.float16), "Linear(weight=None, bias=None, size=mlx.core.float16)"),
    (linear().freeze(), "Linear(weight=❄f32[2,3], bias=❄bf16[2], size=2)"),
    (linear().freeze(keys="bias"), "Linear(weight=f32[2,3], bias=❄bf16[2], size=2)"),
    (Linear([mx.array(1), mx.array(2)]).freeze(keys="weight.1"), "Linear(weight=(i32[], ❄i32[]), bias=None, size=2)"),
    (
        Linear({"a": mx.array(1), "b": mx.array(2)}).freeze(keys="weight.a"),
        "Linear(weight={'a': ❄i32[], 'b': i32[]}, bias=None, size=2)",
    ),
    (Linear([mx.array(1), 3]).freeze(keys="weight"), "Linear(weight=(❄i32[], 3), bias=None, size=2)"),
    (linear().eval(), "Linear[eval](weight=f32[2,3], bias=bf16[2], size=2)"),
    (Linear(Nothing()).eval(), "Linear[eval](weight=Nothing(), bias=None, size=2)"),
    (Linear(Nothing().eval()), "Linear(weight=Nothing[eval](), bias=None, size=2)"),
    (
        Linear(Nothing()).eval().at("weight").apply(lambda each: each.train()),
        "Linear[eval](weight=Nothing[train](), bias=None, size=2)",
    ),
    (Linear(mx.zeros((0, 2), mx.complex64)), "Linear(weight=c64[0,2], bias=None, size=2)"),
    (
        Linear(Pair(mx.array(1), [Pair(2, None)])),
        "Linear(weight=Pair(left=i32[], right=(Pair(left=2, right=None),)), bias=None, size=2)",
    ),
    (
        Linear(Pair(mx.array(1), mx.array(1))).freeze(keys="weight.1"),
        "Linear(weight=Pair(left=i32[], right=❄i32[]), bias=None, size=2)",
    ),
]


@pytest.mark.parametrize(("module", "shown"), SHOWN, ids=[shown for _, shown in SHOWN])
def test_a_small_module_takes_one_line(module: Any, shown: str) -> None:
    assert repr(module) == shown
    assert str(module) == text(module) == shown
    assert f"{module}" == shown


def test_a_large_module_is_an_indented_tree() -> None:
    model = Net([linear(), linear().freeze(), None], {"a": [linear().eval()]})
    assert repr(model) == "\n".join(
        [
            "Net(",
            "  layers=(",
            "    Linear(weight=f32[2,3], bias=bf16[2], size=2),",
            "    Linear(weight=❄f32[2,3], bias=❄bf16[2], size=2),",
            "    None,",
            "  ),",
            "  table={'a': (Linear[eval](weight=f32[2,3], bias=bf16[2], size=2),)},",
            "  rate=0.5,",
            ")",
        ]
    )


@pytest.mark.parametrize(("extra", "lines"), [(0, 1), (1, 5)])
def test_a_module_takes_one_line_as_long_as_that_is_not_too_wide(extra: int, lines: int) -> None:
    shortest = len(repr(Linear("")))
    shown = repr(Linear("x" * (WIDTH - shortest + extra))) if WIDTH - shortest + extra <= 78 else None
    if shown is None:  # A long text is cut, so it is spread over two fields.
        rest = WIDTH - len(repr(Linear("", ""))) + extra
        shown = repr(Linear("x" * (rest // 2), "y" * (rest - rest // 2)))
    assert len(shown.splitlines()) == lines
    if lines == 1:
        assert len(shown) == WIDTH


def test_one_element_in_an_indented_tuple() -> None:
    shown = repr(Net([Net([linear()], {"key": "x" * 70})]))
    assert "layers=(\n    Net(" in shown
    assert ",," not in shown
    assert shown.count("(") == shown.count(")")


def test_a_frozen_name_above_marks_what_is_below_in_containers() -> None:
    shown = repr(Linear([[mx.array(1)], {"a": mx.array(2)}]).freeze(keys="weight"))
    assert shown == "Linear(weight=((❄i32[],), {'a': ❄i32[]}), bias=None, size=2)"


def test_a_frozen_name_marks_what_is_in_modules_there() -> None:
    model = of_lines(2).freeze(keys="layers", recurse=False)
    assert model.trainable_parameters() == {}
    assert repr(model).count("❄") == 4
    assert "3 × Linear(weight=❄f32[2,2]" in repr(of_lines(3).freeze(keys="layers", recurse=False))
    assert "❄" not in repr(model.unfreeze())


def test_a_tie_elsewhere_does_not_keep_equal_modules_apart() -> None:
    model = Net(of_lines(3), of_lines(2).tie({"layers.1.bias": "layers.0.bias"}))
    assert f"(0-2): 3 × {LINE}" in repr(model)


def test_nothing_is_evaluated() -> None:
    # Inside compile an array has no value, and looking at one is an error.
    shown = []
    mx.compile(lambda x: (shown.append(repr(Linear(x + 1))), x)[1])(mx.zeros(3))
    assert shown == ["Linear(weight=f32[3], bias=None, size=2)"]


def test_a_module_with_something_else_in_place_of_its_arrays_has_a_repr() -> None:
    assert repr(fl.tree.map(lambda leaf: leaf.shape, linear())) == "Linear(weight=(2, 3), bias=(2,), size=2)"
    assert repr(fl.tree.map(lambda leaf: [leaf.ndim], linear())) == "Linear(weight=[2], bias=[1], size=2)"


def test_a_long_text_is_cut() -> None:
    assert "..." in repr(Linear("x" * 1000))
    assert len(repr(Linear("x" * 1000))) < 200


def test_a_namedtuple_is_shown_as_a_tuple_of_its_parts() -> None:
    assert "f32[1]" in repr(Linear(Pair(mx.zeros(1), [mx.zeros(2)])))


# Modules in a row


class Thrice(fl.Module):
    first: fl.nn.Linear
    second: fl.nn.Linear
    third: fl.nn.Linear

    def __init__(self) -> None:
        self.first, self.second, self.third = fl.nn.Linear(2, 2), fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)


LINE = "Linear(weight=f32[2,2], bias=f32[2])"


def of_lines(count: int) -> Any:
    return fl.nn.Sequential(*[fl.nn.Linear(2, 2) for _ in range(count)])


def test_equal_modules_in_a_row_are_shown_once() -> None:
    assert repr(of_lines(3)) == f"Sequential(layers=((0-2): 3 × {LINE},))"
    assert repr(of_lines(2)) == f"Sequential(layers=({LINE}, {LINE}))"
    mixed = fl.nn.Sequential(fl.nn.relu, *of_lines(4).layers, fl.nn.Linear(2, 2, bias=False))
    assert f"(relu, (1-4): 4 × {LINE}, Linear(weight=f32[2,2], bias=None))" in repr(mixed)
    long = fl.nn.Sequential(*[fl.nn.Sequential(*[Thrice() for _ in range(5)]) for _ in range(40)])
    assert len(repr(long).splitlines()) == 13
    assert "(0-39): 40 × Sequential(" in repr(long)
    assert "(0-4): 5 × Thrice(" in repr(long)


def test_two_modules_of_several_lines_are_shown_once() -> None:
    assert "(0-1): 2 × Thrice(\n" in repr(fl.nn.Sequential(Thrice(), Thrice()))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.at("layers.1.bias").freeze(),
        lambda model: model.at("layers.1").freeze(),
        lambda model: model.freeze(keys="layers.1"),
        lambda model: model.at("layers.1").apply(lambda layer: layer.eval()),
        lambda model: model.at("layers.1.bias").astype(mx.float16),
        lambda model: model.at("layers.1.bias").set(None),
        lambda model: model.at("layers.1").set(fl.nn.Linear(2, 3)),
        lambda model: model.tie({"layers.1.weight": "layers.0.weight"}),
        lambda model: fl.tree.map(np.array, model),
    ],
    ids=["frozen", "frozen whole", "frozen by name", "mode", "dtype", "no bias", "shape", "tied", "of another library"],
)
def test_a_module_that_differs_is_shown_by_itself(change: Any) -> None:
    shown = repr(change(of_lines(3)))
    assert "×" not in shown
    assert shown.count("Linear") == 3


def test_what_is_shown_once_need_not_be_evaluated() -> None:
    model = fl.nn.Sequential(*[fl.nn.Linear(2, 2).at("weight").set(mx.array([[1.0]]) / 0) for _ in range(3)])
    assert "(0-2): 3 × Linear(weight=f32[1,1]" in repr(model)
    assert repr(fl.eval_shape(of_lines, 3)) == repr(of_lines(3))


# Forty lines


class Residual(fl.Module):
    conv1: fl.nn.Conv2d
    norm1: fl.nn.BatchNorm
    conv2: fl.nn.Conv2d
    norm2: fl.nn.BatchNorm
    shortcut: Any

    def __init__(self, before: int, after: int) -> None:
        self.conv1, self.norm1 = fl.nn.Conv2d(before, after, 3), fl.nn.BatchNorm(after)
        self.conv2, self.norm2 = fl.nn.Conv2d(after, after, 3), fl.nn.BatchNorm(after)
        self.shortcut = None if before == after else fl.nn.Sequential(fl.nn.Conv2d(before, after, 1), fl.nn.BatchNorm(after))


class ResNet(fl.Module):
    first: fl.nn.Conv2d
    stages: Any
    head: fl.nn.Linear

    def __init__(self) -> None:
        self.first, self.head = fl.nn.Conv2d(3, 1, 7), fl.nn.Linear(8, 10)
        self.stages = [[Residual(width, 2 * width), Residual(2 * width, 2 * width)] for width in (1, 2, 4)]


class UNet(fl.Module):
    down1: Residual
    down2: Residual
    down3: Residual
    middle: Residual
    up3: Residual
    up2: Residual
    up1: Residual

    def __init__(self) -> None:
        for number, name in enumerate(UNet.__annotations__):
            setattr(self, name, Residual(number + 1, number + 2))


def llama() -> Any:
    sizes = {"hidden_size": 8, "num_hidden_layers": 12, "intermediate_size": 8, "vocab_size": 9, "num_attention_heads": 2}
    return fl.from_mlx(theirs.Model(theirs.ModelArgs(model_type="llama", rms_norm_eps=1e-5, **sizes)))


def encoder() -> Any:
    return fl.nn.TransformerEncoder(12, 4, 2)


USUAL: dict[str, Any] = {
    "encoder": encoder,
    "llama": llama,
    "resnet": ResNet,
    "unet": UNet,
    "encoder and decoder": lambda: fl.nn.Transformer(4, 2),
    "never built": lambda: fl.eval_shape(ResNet),
    "state": lambda: fl.optim.AdamW(1e-3).init(encoder()),
    "state of llama": lambda: fl.optim.ema(fl.optim.AdamW(1e-3), 0.9).init(llama()),
    "many in a dict": lambda: Net({f"layer{number}": fl.nn.Linear(1, number + 1) for number in range(200)}),
}


@pytest.mark.parametrize("name", USUAL)
def test_usual_models_take_forty_lines_at_most(name: str) -> None:
    model = USUAL[name]()
    lines = repr(model).split("\n")
    assert 4 < len(lines) <= 40
    assert all(len(line.lstrip()) <= 130 for line in lines)
    assert repr(model).count("(") == repr(model).count(")")
    assert lines[0].startswith(type(model).__name__)
    assert lines[-1] == ")"


def test_what_is_inside_most_is_shown_by_its_class() -> None:
    shown = repr(ResNet())
    assert "first=Conv2d(weight=f32[1,7,7,3], bias=f32[1]" in shown
    assert "conv1=Conv2d(...), norm1=BatchNorm(...), " in shown
    assert "shortcut=Sequential(...)" in shown
    frozen = repr(ResNet().at("stages.0.0.conv1").apply(lambda conv: conv.eval()))
    assert frozen.count("Conv2d[eval](...)") == 1


def test_lines_that_are_left_out_are_counted() -> None:
    shown = repr(USUAL["many in a dict"]()).split("\n")
    assert shown[-2] == "  ... and 16 more lines"
    assert len(shown) == 40


def test_a_state_shows_what_is_alike_once() -> None:
    shown = repr(fl.optim.AdamW(1e-3).init(fl.nn.TransformerEncoder(3, 4, 2)))
    assert "'layers.(0-2).ln1.weight': 3 × {'m': f32[4], 'v': f32[4]}," in shown
    assert "'ln.weight': {'m': f32[4], 'v': f32[4]}," in shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"a.0": 1, "a.1": 1, "a.2": 1}, "{'a.(0-2)': 3 × 1}"),
        ({"a.0": 1, "a.1": 1}, "{'a.0': 1, 'a.1': 1}"),
        ({"a.0": 1, "a.1": True, "a.2": 1}, "{'a.0': 1, 'a.1': True, 'a.2': 1}"),
        ({"a.0": 1, "a.1": 1.0, "b": 1, "a.2": 1, "a.3": 1}, "{'a.(0, 2-3)': 3 × 1, 'a.1': 1.0, 'b': 1}"),
        ({0: 1, 1: 1, 2: 1}, "{0: 1, 1: 1, 2: 1}"),
        ({str(i): "x" * 90 + str(i) for i in range(3)}, None),
    ],
    ids=["three", "two", "types", "gaps", "numbers", "cut short"],
)
def test_names_that_differ_in_an_index_are_shown_once(values: Any, shown: str | None) -> None:
    text = repr(Linear(None, values))
    assert "×" not in text if shown is None else f"bias={shown}" in text


@pytest.mark.parametrize(
    "make", [lambda: {f"word {n}": n for n in range(50_000)}, lambda: tuple(range(100_000))], ids=["dict", "tuple"]
)
def test_a_large_static_container_is_cut(make: Any) -> None:
    class Words(fl.Module):
        words: Any = fl.static()
        weight: Any

    shown = repr(Words(make(), mx.zeros(3)))
    assert len(shown) < 4_000
    assert f"... and {len(make()) - 100:,} more" in shown
    assert "weight=f32[3]" in shown


def test_a_long_name_and_a_long_number_are_cut() -> None:
    class Large(fl.Module):
        number: int = fl.static()
        arrays: Any

    model = Large(10**6_000, {"k" * 10_000: mx.zeros(3)})
    assert len(repr(model)) < 400
    assert "int of 19,932 bits" in repr(model)
    assert "int of 19,932 bits" in model._repr_html_()
    assert len(repr(fl.tree.diff(model, model.astype(mx.float16)))) < 300


@pytest.mark.parametrize(
    "show", [fl.summary, lambda tree: fl.tree.diff(tree, fl.tree.map(lambda leaf: leaf.astype(mx.float16), tree))]
)
def test_control_characters_of_names_are_shown_as_python_writes_them(show: Any) -> None:
    shown = repr(show({"\x1b[31mred\nline": fl.nn.Linear(2, 2)}))
    assert "\x1b" not in shown
    assert "\\x1b[31mred\\nline" in shown


@pytest.mark.parametrize("count", [60, 3_000])
def test_one_module_of_many_arrays_has_a_hundred_lines_at_most(count: int) -> None:
    names = [f"{'abc'[number % 3]}{number}_{'long' * (number % 11)}" for number in range(count)]
    shown = repr(Linear({name: mx.zeros(number % 50) for number, name in enumerate(names)})).split("\n")
    assert len(shown) <= (40 if count == 60 else 100)
    assert all(len(line) <= 101 for line in shown)
    assert ("more lines" in shown[-2]) == (count == 3_000)
    assert count == 3_000 or all(any(name in line for line in shown) for name in names)
