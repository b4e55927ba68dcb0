"""Models, selections and arrays in Treescope."""

from __future__ import annotations

import html.parser
import subprocess
import sys
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

treescope = pytest.importorskip("treescope")

import frostleaf as fl  # noqa: E402
from frostleaf.display.treescope import ArrayAdapter  # noqa: E402

# Treescope looks at all that NumPy has, whatever NumPy says of it.
pytestmark = pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning")


class Net(fl.Module):
    weight: Any
    table: Any = None
    rate: Any = fl.static(default=0.5)


class Pair(NamedTuple):
    left: Any
    right: Any


def linear() -> Any:
    return fl.nn.Linear(3, 2)


def text_of(value: Any) -> str:
    return str(treescope.render_to_text(value))


LINEAR = "Linear(weight=<mx.array float32(2, 3)>, bias=<mx.array float32(2,)>)"
SHOWN: list[tuple[Any, str]] = [
    (linear(), LINEAR),
    (Net(mx.zeros(())), "Net(weight=<mx.array float32()>, table=None, rate=0.5)"),
    (Net({"a": {1: mx.zeros(1)}}), "Net(weight={'a': {1: <mx.array float32(1,)>}}, table=None, rate=0.5)"),
    (Net((mx.zeros(1), 2)), "Net(weight=(<mx.array float32(1,)>, 2), table=None, rate=0.5)"),
    (
        Net(Pair(mx.zeros(1), None)),
        "Net(weight=Pair(left=<mx.array float32(1,)>, right=None), table=None, rate=0.5)",
    ),
    (linear().freeze(keys="bias"), LINEAR.replace("(w", "[frozen: bias](w")),
    (linear().eval(), LINEAR.replace("(w", "[eval](w")),
    (Net(mx.zeros(1), mx.zeros(1)).tie({"table": "weight"}), "Net[tied: table → weight](weight="),
    (fl.eval_shape(linear), LINEAR.replace("mx.array", "fl.ShapeDtypeStruct")),
    (fl.from_mlx(mlx.nn.Linear(3, 2)), LINEAR),
    (fl.nn.Sequential(linear(), linear()).at("layers.0"), f"Selection({{'layers.0': {LINEAR}}})"),
    (fl.optim.SGD(0.1).init(linear()), "hyperparameters={'learning_rate': <mx.array float32()>}"),
    (mx.zeros((2, 3), mx.bfloat16), "<mx.array bfloat16(2, 3)>"),
    ([mx.zeros(2)], "[<mx.array float32(2,)>]"),
]


def in_one_line(text: str) -> str:
    words = " ".join(text.split())
    for left, right in (("( <", "(<"), ("( ", "("), ("{ ", "{"), (", )", ")"), (", }", "}"), (" }", "}")):
        words = words.replace(left, right)
    return words


@pytest.mark.parametrize(("value", "shown"), SHOWN, ids=[shown for _, shown in SHOWN])
def test_what_treescope_shows(value: Any, shown: str) -> None:
    assert in_one_line(shown) in in_one_line(text_of(value))


def test_there_is_one_picture_of_a_model() -> None:
    assert "Rich HTML" not in text_of(linear())
    assert "<details" in linear()._repr_html_()


def test_modules_and_arrays_at_two_places_are_no_mistake() -> None:
    layer = linear()
    shared = fl.nn.Sequential(layer, layer)
    assert "Repeated" not in text_of(shared)
    assert " at 0x" not in text_of(shared)


def test_nothing_is_evaluated() -> None:
    shown = []

    def seen(x: mx.array) -> mx.array:
        model = Net(x + 1, {"a": x})
        shown.extend([text_of(model), text_of(model.at("**")), treescope.render_to_html(model)])
        with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
            shown.append(treescope.render_to_html(model))
        return x

    mx.compile(seen)(mx.zeros(3))
    assert "float32(3,)" in shown[0]


def test_a_module_that_is_being_built() -> None:
    shown = []

    class Half(fl.Module):
        weight: Any

        def __init__(self) -> None:
            shown.append(text_of(self))
            self.weight = mx.array(1)

    Half()
    assert shown == ["Half(<being built>)"]


class Tags(html.parser.HTMLParser):
    """The tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "</script><b>", "\"'><img src=x onerror=alert(1)>"])
def test_what_comes_from_a_model_is_text(text: str) -> None:
    def tags(name: str) -> set[str]:
        model = Net({name: mx.zeros(1)}, type(name, (Net,), {})(mx.zeros(1), None, name))
        return {*Tags(treescope.render_to_html(model, compressed=False)).found}

    assert tags(text) <= tags("name")


ARRAYS = [
    mx.random.normal((3, 4)),
    mx.random.normal((3, 4)).astype(mx.bfloat16),
    mx.random.normal((3, 4)).astype(mx.float16),
    mx.array(2.5),
    mx.array([1 + 2j, -3j]),
    mx.array([True, False]),
    mx.arange(12, dtype=mx.int64).reshape(2, 1, 6),
    mx.array([2**32 - 1, 0], mx.uint32),
    mx.array([float("nan"), float("inf"), 1.0]),
    fl.quantize(fl.nn.Linear(64, 64)).weight,
    mx.zeros((0, 3)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_pictures_of_arrays(array: mx.array) -> None:
    options = {"vmin": 0, "vmax": 1} if array.size == 0 else {}  # Treescope can't draw an empty array of NumPy without either
    assert treescope.render_array(array, **options)._repr_html_()


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_the_numbers_are_those_of_the_array(array: mx.array) -> None:
    adapter = ArrayAdapter()
    numbers, shown = adapter.get_array_data_with_truncation(array, None, (None,) * array.ndim)
    expected = abs(array) if array.dtype == mx.complex64 else array
    assert mx.array_equal(mx.array(numbers).astype(expected.dtype), expected, equal_nan=True)
    assert numbers.dtype == adapter.get_numpy_dtype(array)
    assert shown.all()
    assert shown.shape == numbers.shape == array.shape
    assert [axis.size for axis in adapter.get_axis_info_for_array_data(array)] == list(array.shape)


@pytest.mark.parametrize("shape", [(9,), (9, 8), (3, 7, 11)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_large_array_is_cut_as_treescope_cuts_one_of_numpy(shape: tuple[int, ...], masked: bool) -> None:
    array = mx.arange(np.prod(shape).item()).reshape(shape)
    mask = np.array(array) % 3 == 0 if masked else None
    edges = tuple([2 if length > 6 else None for length in shape])
    numbers, shown = ArrayAdapter().get_array_data_with_truncation(array, mask, edges)
    treescope.type_registries.update_registries_for_imports()
    other = treescope.type_registries.lookup_ndarray_adapter(np.array(array))
    expected, drawn = other.get_array_data_with_truncation(np.array(array), mask, edges)
    assert np.array_equal(shown, drawn)
    assert np.array_equal(numbers[shown], expected[drawn])
    if masked:
        again = ArrayAdapter().get_array_data_with_truncation(array, mx.array(mask), edges)
        assert np.array_equal(again[1], drawn)


CODES = {
    "treescope first": "import treescope, frostleaf as fl",
    "frostleaf first": "import frostleaf as fl, treescope",
}
HABIT = """
import mlx.core as mx
assert "weight=<mx.array float32(2, 2)>" in treescope.render_to_text(fl.nn.Linear(2, 2))
assert treescope.render_to_text(mx.zeros(2)) == "<mx.array float32(2,)>"
"""


@pytest.mark.parametrize("name", CODES)
def test_nothing_need_be_set_up(name: str) -> None:
    subprocess.run([sys.executable, "-c", CODES[name] + HABIT], check=True)


@pytest.mark.parametrize(
    "imports",
    ["treescope, frostleaf", "frostleaf.display.treescope, treescope", "frostleaf, treescope, frostleaf.display.treescope"],
)
def test_arrays_are_shown_before_any_model(imports: str) -> None:
    code = f"""
import {imports}
import frostleaf as fl, mlx.core as mx
layer = fl.nn.Linear(2, 2)
assert treescope.render_to_text([mx.zeros(2), layer]).split()[:3] == ["[", "<mx.array", "float32(2,)>,"]
assert "object at" not in treescope.render_to_text([fl.summary(layer), fl.tree.diff(layer, layer.freeze())])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frostleaf_can_be_imported_where_treescope_cant() -> None:
    code = "import sys; sys.modules['treescope'] = None; import frostleaf"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_summary_and_differences_are_their_text() -> None:
    layer = linear()
    for value in (fl.summary(layer), fl.tree.diff(layer, layer.freeze()), fl.tree.diff(layer, layer)):
        shown = text_of(value)
        assert all(line in shown for line in repr(value).split("\n"))


def test_one_import_is_enough_for_arrays() -> None:
    code = "import treescope, frostleaf.display.treescope, mlx.core as mx; assert treescope.render_array(mx.zeros((2, 2)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_notebook_that_is_set_up_as_treescope_says_shows_models() -> None:
    code = """
import frostleaf as fl, io, contextlib
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
with contextlib.redirect_stdout(io.StringIO()):
    shell.run_cell("import treescope, frostleaf as fl; treescope.basic_interactive_setup()")
shell.run_cell("model = fl.nn.Linear(2, 3)")
data, _ = shell.display_formatter.format(shell.user_ns["model"])
assert "treescope_out" in data["text/html"] and 'class="frostleaf"' not in data["text/html"]
for value in (fl.summary(shell.user_ns["model"]), fl.tree.diff([1], [2])):
    data, _ = shell.display_formatter.format(value)
    assert data["text/html"].startswith('<div class="frostleaf">')
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_notebook_without_treescope_shows_a_page() -> None:
    code = """
from IPython.core.interactiveshell import InteractiveShell
import frostleaf as fl
shell = InteractiveShell.instance()
for value in (fl.nn.Linear(2, 3), fl.nn.Linear(2, 3).at("weight"), fl.summary(fl.nn.Linear(2, 3)), fl.tree.diff([1], [2])):
    data, _ = shell.display_formatter.format(value)
    assert data["text/plain"] == repr(value)
    assert data["text/html"].startswith('<div class="frostleaf">')
"""
    subprocess.run([sys.executable, "-c", code], check=True)
