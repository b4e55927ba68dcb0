"""How trees look in a notebook."""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys
import time
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

import frostleaf as fl
from frostleaf.core.words import printable
from frostleaf.display import html as shown
from frostleaf.display.outline import Row, outline
from frostleaf.edits.freezing import trainable

VOID = {"input"}
# What the pages are made of: anything else has come from a model.
TAGS = {"div", "ul", "li", "details", "summary", "span", "b", "code", "i", "small", "em", "input", "button", "style", "script"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"class", "open", "style", "title", "data-run", "type", "placeholder", "aria-label", "hidden"}


class Reader(html.parser.HTMLParser):
    """Reads a page as a browser does, and keeps its tags, attributes, names, and text outside style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.names: list[str] = []
        self.runs: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.runs += [value or "" for name, value in attrs if name == "data-run"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "b":
            self.names.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] == "b":
            self.names[-1] += data


def read(value: Any) -> Reader:
    return Reader(value._repr_html_())


class Linear(fl.Module):
    weight: Any
    bias: Any = None
    size: Any = fl.static(default=2)


class Pair(NamedTuple):
    left: Any
    right: Any


class Count(fl.Module):
    seen: Any = fl.buffer()
    table: Any = fl.buffer(persistent=False)
    weight: Any = None


def linear() -> Linear:
    return Linear(mx.zeros((2, 3)), mx.zeros(2, mx.bfloat16))


def row_at(tree: Any, path: str) -> Row:
    row = outline(tree)
    for name in path.split("."):
        row = next(each for each in row.rows if each.name == name)
    return row


def stack(count: int, **options: Any) -> Any:
    return fl.nn.Sequential(*[fl.nn.Linear(2, 2, **options) for _ in range(count)])


def every_row(row: Row) -> list[Row]:
    return [row, *[each for inside in row.rows for each in every_row(inside)]]


# What a page says


def test_a_page_has_names_classes_shapes_dtypes_static_values_and_bytes() -> None:
    model = fl.nn.Sequential(fl.nn.Linear(3, 2, dtype=mx.bfloat16), fl.nn.relu, fl.nn.Dropout(0.25))
    page = read(model)
    assert page.names == ["Sequential", "layers", "0", "weight", "bias", "1", "2"]
    for text in ("Linear", "[2,3]", "bf16", "relu", "Dropout", "p=0.25", "12 B", "16 B"):
        assert text in page.text


@pytest.mark.parametrize(
    ("tree", "path", "marks"),
    [
        (linear().freeze(keys="bias"), "bias", ("frozen",)),
        (linear().freeze(keys="bias"), "weight", ()),
        (Linear({"a": mx.array(1.0), "b": mx.array(1.0)}).freeze(keys="weight.a"), "weight.a", ("frozen",)),
        (Linear(linear()).freeze(), "weight", ("frozen",)),
        (Linear(linear()).freeze(keys="bias"), "weight", ("partly frozen",)),
        (stack(2).freeze(keys="layers", recurse=False), "layers.0.weight", ("frozen",)),
        (Count(mx.array(1), mx.array(1)), "seen", ("buffer",)),
        (Count(mx.array(1), mx.array(1)).freeze(), "table", ("buffer",)),
        (Count([mx.array(1)], None), "seen", ("buffer",)),
        (Count([mx.array(1)], None), "seen.0", ()),
        (Linear(linear().eval()), "weight", ("eval",)),
        (Linear(linear()).eval(), "weight", ()),
        (Linear(linear()).eval().at("weight").apply(lambda each: each.train()), "weight", ("train",)),
        (stack(2).tie({"layers.1.weight": "layers.0.weight"}), "layers.1.weight", ("→ layers.0.weight",)),
        (fl.eval_shape(stack, 2), "layers.0.bias", ("no values",)),
    ],
)
def test_marks(tree: Any, path: str, marks: tuple[str, ...]) -> None:
    assert row_at(tree, path).marks == marks
    assert all(mark in read(tree).text for mark in marks)


TREES = [
    linear(),
    stack(5),
    fl.nn.BatchNorm(4),
    stack(4).freeze(keys="bias"),
    stack(2).freeze(keys="layers", recurse=False),
    stack(2).tie({"layers.1.weight": "layers.0.weight"}),
    fl.quantize(fl.nn.Sequential(fl.nn.Linear(64, 64), fl.nn.Linear(64, 8))),
    fl.optim.AdamW(1e-3).init(stack(3)),
    fl.from_mlx(mlx.nn.TransformerEncoder(2, 8, 2)),
    fl.eval_shape(stack, 3),
    Linear(Pair(mx.array(1), [Pair(mx.array(2.0), None)]), {"a": {1: mx.zeros(3)}}),
    Count(linear(), [mx.array(1), linear()], {"x": linear().freeze()}),
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_sizes_are_those_of_the_tree(tree: Any) -> None:
    leaves = fl.tree.leaves(tree)
    sizes = outline(tree).sizes
    assert sizes.numbers == sum({id(leaf): leaf.size for leaf in leaves}.values())  # the rate is at two places
    assert sizes.nbytes == fl.tree.nbytes(tree)
    assert sizes.trained == sum(leaf.size for leaf, trains in zip(leaves, trainable(tree), strict=True) if trains)
    assert outline(tree).dtypes == {leaf.dtype for leaf in leaves}


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_names_lead_to_the_arrays(tree: Any) -> None:
    def names(row: Row, path: str) -> list[str]:
        if row.times > 1:
            first, last = map(int, row.name.split("-"))
            every = [f"{path}{number}." for number in range(first, last + 1)]
            return [name for each in every for inside in row.rows for name in names(inside, each)]
        path = f"{path}{row.name}" if row.is_array else f"{path}{row.name}." if row.name else path
        is_tied = any(mark.startswith("→") for mark in row.marks)
        return [path] * (not is_tied) if row.is_array else [name for each in row.rows for name in names(each, path)]

    assert sorted(names(outline(tree), "")) == sorted(fl.tree.paths(tree))


@pytest.mark.parametrize(
    ("row", "run"),
    [
        (stack(3), "0|2|Linear|24 B|33.3%"),
        (fl.nn.Sequential(fl.nn.relu, *stack(3).layers), "1|3|Linear|24 B|33.3%"),
        (stack(2), None),
        (stack(3).at("layers.1").freeze(), None),
        (fl.nn.Sequential(stack(3), stack(2).tie({"layers.1.bias": "layers.0.bias"})), "0|2|Linear|24 B|21.4%"),
    ],
    ids=["three", "after another", "two", "one differs", "a tie elsewhere"],
)
def test_equal_modules_in_a_row_are_one_row(row: Any, run: str | None) -> None:
    page = read(row)
    assert page.runs == ([] if run is None else [run])
    assert ("3 × Linear" in page.text) == (run is not None)


def test_a_selection_shows_what_is_selected_by_its_whole_path() -> None:
    model = stack(3).at("layers.1").freeze()
    page = read(model.at(["layers.1", "layers.2.bias"]))
    assert page.names == ["Selection of 2 in Sequential", "layers.1", "weight", "bias", "layers.2.bias"]
    assert page.text.count("❄ frozen") == 3
    assert "Selection of nothing in Sequential" in read(model.at("nothing")).text
    assert read(model.at("**")).names.count("layers.0.weight") == 1


def test_a_selection_of_many_is_cut() -> None:
    tree = Linear({f"a{number}": mx.zeros(1) for number in range(5_000)})
    assert "and 1,000 more" in read(tree.at("weight.*")).text


def test_another_way_to_show_a_model_is_used() -> None:
    class Own(fl.Module):
        weight: Any

        def _repr_html_(self) -> str:
            return "<p>mine</p>"

    assert Own(mx.array(1))._repr_html_() == "<p>mine</p>"
    assert "Own" in read(Linear(Own(mx.array(1)))).text


def test_a_summary_is_a_table() -> None:
    model = fl.nn.Sequential(*stack(4).layers, fl.nn.relu).at("layers.0").freeze()
    summary = fl.summary(model, fl.ShapeDtypeStruct((5, 2)))
    page = read(summary)
    assert page.names == ["(root)", "layers.0", "layers.(1-3)"]
    for text in ("3 × Linear", "3 × 24 B", "96 B", "output", "f32[5,2]", "24 parameters (18 trainable, 6 frozen)", "by dtype"):
        assert text in page.text
    assert "output" not in read(fl.summary(model)).text
    assert "and 500 more" in read(fl.summary({f"a{number}": linear() for number in range(1_499)})).text


def test_differences_are_a_table() -> None:
    model = stack(4)
    changes = fl.tree.diff(model, model.astype(mx.bfloat16).at("layers.0").freeze(), values=True)
    page = read(changes)
    assert page.names == ["9 changes", *[row.path for row in changes.rows]]
    for row in changes.rows:
        assert row.before in page.text
        assert row.after in page.text
        assert row.by in page.text
    assert "by" not in read(fl.tree.diff(model, model.eval())).text
    assert read(fl.tree.diff(model, model)).text == "no difference"


class Picture(mlx.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlx.nn.Linear(2, 2)

    def _repr_html_(self) -> str:
        return f"<p>{len(self.parameters()['inner'])}</p>"


def test_a_module_of_mlx_keeps_its_way_to_show_itself() -> None:
    assert fl.from_mlx(Picture())._repr_html_() == "<p>2</p>"


# What must not happen


HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "&lt;b&gt;&#x3c;",
    "<!-- ",
    "]]>",
    "javascript:alert(1)",
    "a\nb\tc\r",
    "\u202egnp.exe",
    "|0|9|",
    "日本語 😀",
    "",
]


def hostile_trees(text: str) -> list[Any]:
    named = type(text or "Empty", (fl.Module,), {"__annotations__": {"weight": Any}})
    inside = type(text or "Empty", (linear().__class__,), {})
    pair = Pair(mx.zeros(2), {text: linear()})
    return [
        Linear({text: mx.zeros(2)}),
        Linear({text: linear()}, None, text),
        Linear({text: {text: [linear() for _ in range(3)]}}, None, {text: (text,)}),
        Linear(pair, [text]),
        named(mx.zeros(2)),
        Linear([inside(mx.zeros(2), None, text) for _ in range(4)]),
        Linear({text: mx.zeros(2), "b": mx.zeros(2)}).tie({"weight.b": f"weight.{text}"})
        if text.isascii() and text
        else linear(),
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_comes_from_a_model_is_text(text: str) -> None:
    for tree in hostile_trees(text):
        changes = fl.tree.diff(tree, tree.astype(mx.float16).freeze())
        for value in (tree, tree.at("**"), fl.optim.SGD(0.1, 0.9).init(tree), fl.summary(tree), changes):
            page = read(value)
            assert page.tags <= TAGS
            assert page.attributes <= ATTRIBUTES
            assert value._repr_html_().count("<script>") == value._repr_html_().count("<style>") == 1
    assert printable(text) in read(Linear({text: mx.zeros(2)})).names


@pytest.mark.parametrize("name", ["long" * 5_000, "\u202e" * 300, "a\x1b[31m\n" * 500], ids=["long", "turned", "control"])
def test_a_name_is_short_and_turns_nothing(name: str) -> None:
    tree = Linear(mx.zeros(2), {name: [linear(), {name: mx.zeros(2)}]}).tie({"weight": f"bias.{name}.1.{name}"})
    for value in (tree, tree.at("**"), fl.optim.SGD(0.1, 0.9).init(tree), fl.summary(tree), fl.tree.diff(tree, tree.freeze())):
        page = value._repr_html_()
        assert page.replace("\n", "").isprintable()
        assert len(page) < len(linear()._repr_html_()) + 8_000
        assert max(map(len, read(value).names)) <= 200
        assert len(repr(value)) < 2_500
        assert repr(value).replace("\n", "").isprintable()


def test_half_a_character_can_be_written_to_a_file() -> None:
    page = Linear({"\ud800": mx.zeros(2)})._repr_html_()
    assert "\\ud800" in page
    page.encode()


@pytest.mark.parametrize("text", ["weight", *HOSTILE])
def test_text_is_escaped_in_one_place(text: str) -> None:
    made = shown.element("b", text, shown.element("i", text), title=text)
    reader = Reader(made)
    assert reader.tags == {"b", "i"}
    assert reader.attributes == {"title"}
    assert reader.text == printable(text) * 2


def test_no_page_asks_for_anything_elsewhere() -> None:
    page = stack(50)._repr_html_()
    assert not [word for word in ("http", "src=", "url(", "import(", "fetch", "@import", "href") if word in page]


def test_nothing_is_evaluated() -> None:
    pages = []

    def seen(x: mx.array) -> mx.array:
        model = Linear(x + 1, [x * 2])
        pages.extend([model._repr_html_(), model.at("**")._repr_html_()])
        return x

    mx.compile(seen)(mx.zeros(3))  # inside, an array has no value, and looking at one is an error
    fl.jit(seen)(mx.ones(3))
    mx.vmap(seen)(mx.ones((2, 3)))
    fl.grad(lambda model: (model._repr_html_(), model.weight.sum())[1])(linear())
    assert all("[3]" in page for page in pages)


def test_a_module_that_is_being_built() -> None:
    pages = []

    class Half(fl.Module):
        weight: Any

        def __init__(self) -> None:
            pages.append(self._repr_html_())
            self.weight = mx.array(1)

    Half()
    assert "Half (being built)" in Reader(pages[0]).text


def test_a_late_module_stays_what_it_is() -> None:
    model = fl.jit(lambda model: fl.tree.map(lambda leaf: leaf + 1, model))(stack(3))
    before = fl.tree.leaves(model)
    assert read(model).runs
    assert all(after is leaf for after, leaf in zip(fl.tree.leaves(model), before, strict=True))


OTHERS = [lambda leaf: leaf.shape, lambda leaf: None, lambda leaf: np.zeros(leaf.shape), lambda leaf: "text"]


@pytest.mark.parametrize("of", OTHERS)
def test_a_tree_of_something_else(of: Any) -> None:
    assert read(fl.tree.map(of, Linear(mx.zeros((2, 3)), [linear()] * 3))).tags <= TAGS


def test_a_deep_model_is_cut_and_counted() -> None:
    model: Any = linear()
    for _ in range(100):
        model = Linear([model])
    assert len(model._repr_html_()) < 30_000
    assert outline(model).sizes.nbytes == fl.tree.nbytes(model)


def different(count: int) -> Any:
    return fl.nn.Sequential(*[fl.nn.Linear(1, number + 1) for number in range(count)])


@pytest.mark.parametrize("model", [stack(1_000), different(1_000), different(3_000)], ids=["equal", "different", "many"])
def test_a_large_model_has_a_page_of_bounded_size(model: Any) -> None:
    start = time.perf_counter()
    page = model._repr_html_()
    assert time.perf_counter() - start < 5  # the benchmarks say how long it takes
    assert len(page.encode()) < 1_000_000
    assert ("more" in Reader(page).text) == (len(model.layers) == 3_000)


def test_nothing_of_this_is_imported_before_it_is_used() -> None:
    code = (
        "import frostleaf as fl, sys; repr(fl.nn.Linear(2, 2)); "
        "assert 'frostleaf.display.html' not in sys.modules; fl.nn.Linear(2, 2)._repr_html_(); "
        "assert 'treescope' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _net_twice(count: int) -> fl.Module:
    layer = fl.nn.Linear(4, 4)
    return fl.nn.Sequential(*[layer] * count)


@pytest.mark.parametrize("count", [2, 5])
def test_an_array_at_several_places_counts_once(count: int) -> None:
    page = _net_twice(count)._repr_html_()
    assert "20 numbers" in page
    assert f"{20 * count} numbers" not in page
    assert re.search(r"<em[^>]*>([^<]*)", page)[1] == "80 B"


def test_checkpoints_are_a_table(tmp_path):
    with fl.Checkpointer(tmp_path) as checkpoints:
        assert "no checkpoints" in checkpoints.info()._repr_html_()
        for step, metrics in ((1, {"loss": 0.5}), (20, {"<b>": 2})):
            checkpoints.save(step, {"a": mx.ones(2)}, metrics=metrics)
        checkpoints.wait()
        page = checkpoints.info()._repr_html_()
    assert "2 checkpoints" in page
    for part in ("<b>1</b>", "<b>20</b>", ">loss</th>", ">0.5</td>", ">&lt;b&gt;</th>", ">2</td>"):
        assert page.count(part) == 1
