"""Places that are tied in a file: a tree that is not tied there gets what the file has for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import frostleaf as fl
from frostleaf.io.description import Fact
from frostleaf.io.ties import tied_names, ties_in

WORDS, HEAD = "words.weight", "head.weight"
COUNT = 5000  # numbers of an array that a checkpoint writes to a file of its own


class Words(fl.Module):
    words: fl.nn.Embedding
    head: fl.nn.Linear
    norm: mx.array


class Headless(fl.Module):
    words: fl.nn.Embedding
    norm: mx.array


class Twice(fl.Module):
    one: Any
    two: Any


def words(seed: int, count: int = 5) -> Words:
    keys = mx.random.split(mx.random.key(seed))
    return Words(fl.nn.Embedding(count, 3, key=keys[0]), fl.nn.Linear(3, count, bias=False, key=keys[1]), mx.array([seed, 1.0]))


def tied(seed: int, count: int = 5) -> Words:
    return words(seed, count).tie({HEAD: WORDS})


def saved(folder: Path, tree: Any) -> Path:
    fl.save(folder / "a.safetensors", tree)
    return folder / "a.safetensors"


def checkpoint(folder: Path, tree: Any) -> Path:
    with fl.Checkpointer(folder) as checkpoints:
        for step in (1, 2):  # what stays gets a file of its own
            checkpoints.save(step, tree)
    return folder / "step-00000002.safetensors"


def weights_of_checkpoint(folder: Path, tree: Any) -> Path:
    checkpoint(folder, tree)
    return next(each for each in folder.iterdir() if each.is_dir())


INSIDE = {
    "alone": lambda tree: tree,
    "dict": lambda tree: {"model": tree, "n": 1},
    "deep": lambda tree: [mx.zeros(1), (tree,)],
}  # fmt: skip
FOUND: dict[str, Callable[[Any], Words]] = {
    "alone": lambda tree: tree,
    "dict": lambda tree: tree["model"],
    "deep": lambda tree: tree[1][0],
}  # fmt: skip


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("save", [saved, checkpoint])
@pytest.mark.parametrize("where", [None, "**", "**.weight", fl.nn.Linear])
def test_a_tied_place_gets_the_array_of_its_source(inside: str, save: Any, where: Any, tmp_path: Path) -> None:
    model, like = tied(1), words(2)
    file = save(tmp_path, INSIDE[inside](model))
    loaded, report = fl.load(file, INSIDE[inside](like), where=where, strict=False)
    part = FOUND[inside](loaded)
    assert fl.tree.equal(part.head.weight, model.words.weight)
    assert (part.head.weight is part.words.weight) == (where is not fl.nn.Linear)
    assert [name.rpartition(".")[0].rpartition(".")[2] for name in report.taken if name.endswith("weight")] == (
        ["head"] if where is fl.nn.Linear else ["words", "head"]
    )
    assert report.new == ()
    assert report.differs == ()
    assert not any(name.endswith("weight") for name in report.left)
    if save is checkpoint:
        restored = fl.Checkpointer(tmp_path).restore(INSIDE[inside](like), where=where, strict=False)
        assert fl.tree.equal(restored[1], loaded)
        assert restored[2] == report


def test_like_may_have_the_tied_place_alone(tmp_path: Path) -> None:
    model = tied(1)
    loaded, report = fl.load(saved(tmp_path, model), {"head": words(2).head}, strict=False)
    assert fl.tree.equal(loaded["head"].weight, model.words.weight)
    assert report == ((HEAD,), ("norm",), (), ())


@pytest.mark.parametrize(
    ("rename", "taken", "new"),
    [
        (lambda name: name.replace("head.", "out."), ("out.weight", WORDS), ()),
        ({HEAD: "out.weight"}, ("out.weight", WORDS), ()),
        ({HEAD: None}, (WORDS,), ("out.weight",)),
        ({WORDS: "out.weight"}, ("out.weight",), (WORDS,)),
        ({WORDS: "out.weight", HEAD: WORDS}, ("out.weight", WORDS), ()),
        ({WORDS: None, HEAD: "out.weight"}, ("out.weight",), (WORDS,)),
        ({"norm": HEAD}, (WORDS,), ("out.weight",)),
    ],
)
def test_renaming_asks_about_tied_places(rename: Any, taken: Any, new: Any, tmp_path: Path) -> None:
    model, like = tied(1), words(2)
    tree = {"out": like.head, "words": like.words}
    loaded, report = fl.load(saved(tmp_path, model), tree, rename=rename, strict=False)
    assert (report.taken, report.new) == (taken, new)
    arrays = dict(zip(fl.tree.paths(loaded), fl.tree.leaves(loaded), strict=True))
    assert all(fl.tree.equal(arrays[name], model.words.weight) for name in taken)


class Many(fl.Module):
    a: mx.array
    b: mx.array
    tied_to_a: Any
    also_to_a: Any
    tied_to_b: Any


@pytest.mark.parametrize("read", ["load", "load_weights"])
def test_tied_places_that_become_one_are_told_apart_only_where_they_have_to_be(read: str, tmp_path: Path) -> None:
    def loaded(rename: dict[str, str]) -> list[int]:
        like = fl.nn.Sequential(mx.array([0]), mx.array([0]))
        if read == "load":
            model, _ = fl.load(file, like, strict=False, rename=rename)
        else:
            model = like.load_weights(file, strict=False, rename=rename)
        return [int(each.item()) for each in model.layers]

    model = Many(*[mx.array([number]) for number in range(1, 6)])
    file = saved(tmp_path, model.tie({"tied_to_a": "a", "also_to_a": "a", "tied_to_b": "b"}))
    second = {"b": "layers.1"}
    assert loaded({**second, "tied_to_a": "layers.0", "also_to_a": "layers.0"}) == [1, 2]
    assert loaded({**second, "tied_to_a": "other", "tied_to_b": "other"}) == [0, 2]
    assert loaded({"a": "layers.0", "tied_to_a": "layers.0", "tied_to_b": "layers.0"}) == [1, 0]
    with pytest.raises(ValueError, match=r"rename gives 'layers\.0' for 'tied_to_a' and for 'tied_to_b'"):
        loaded({**second, "tied_to_a": "layers.0", "tied_to_b": "layers.0"})


def test_renaming_is_not_asked_where_nothing_is_missing(tmp_path: Path) -> None:
    file, table = saved(tmp_path, tied(1)), {WORDS: WORDS, "norm": "norm"}
    assert fl.load(file, tied(2), rename=lambda name: table[name], strict=False)[1].new == ()
    assert fl.tree.equal(tied(2).load_weights(file, rename=lambda name: table[name]), tied(1))


def test_what_is_tied_in_like_and_not_in_the_file_is_reported(tmp_path: Path) -> None:
    model, like = words(1), tied(2)
    loaded, report = fl.load(saved(tmp_path, model), like, strict=False)
    assert report == ((WORDS, "norm"), (HEAD,), (), ())
    assert loaded.head.weight is loaded.words.weight
    assert fl.tree.equal(loaded.words.weight, model.words.weight)


def test_ties_the_other_way_round(tmp_path: Path) -> None:
    model, like = tied(1), words(2).tie({WORDS: HEAD})
    loaded, report = fl.load(saved(tmp_path, model), like, strict=False)
    assert report == ((HEAD, "norm"), (), (), ())
    assert fl.tree.equal(loaded.words.weight, model.words.weight)
    assert fl.tree.equal(like.load_weights(tmp_path / "a.safetensors"), loaded)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_place_of_another_shape_is_a_new_one(dtype: Any, tmp_path: Path) -> None:
    model, like = tied(1), words(2).replace(head=fl.nn.Linear(3, 7, bias=False, dtype=dtype))
    loaded, report = fl.load(saved(tmp_path, model), like, strict=False)
    assert report == ((WORDS, "norm"), (), (HEAD,), ())
    assert loaded.head is like.head
    assert fl.tree.equal(like.load_weights(tmp_path / "a.safetensors", strict=False), loaded)
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \nhead.weight"):
        like.load_weights(tmp_path / "a.safetensors")


def test_of_another_dtype_it_is_told_as_anything_is(tmp_path: Path) -> None:
    like = words(2)
    like = like.replace(head=like.head.astype(mx.bfloat16))
    with pytest.raises(fl.OtherStructureError, match=r"head.weight: array f32\[5,3\] in the file, array bf16"):
        fl.load(saved(tmp_path, tied(1)), like, strict=False)
    assert fl.tree.equal(like.load_weights(tmp_path / "a.safetensors").tie({HEAD: WORDS}), tied(1))


class Layers(nn.Module):
    def __init__(self, one_module: bool) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.two = self.one if one_module else nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.last = nn.Linear(2, 2)


def test_modules_that_are_tied(tmp_path: Path) -> None:
    ties = {"one.layers.1.weight": "one.layers.0.weight", "last.weight": "one.layers.0.weight"}
    tree, like = fl.from_mlx(Layers(True)).tie(ties), fl.from_mlx(Layers(False))
    assert "two=→one" in repr(tree)
    file = saved(tmp_path, tree)
    loaded, report = fl.load(file, like, strict=False)
    assert report == (tuple(fl.tree.paths(like)), (), (), ())
    for each in (loaded, like.load_weights(file), like.load_weights(file, strict=False)):
        found = dict(zip(fl.tree.paths(each), fl.tree.leaves(each), strict=True))
        for name in ("one.layers.1", "two.layers.0", "two.layers.1", "last"):
            assert found[f"{name}.weight"] is found["one.layers.0.weight"]
        for number in (0, 1):
            assert found[f"two.layers.{number}.bias"] is found[f"one.layers.{number}.bias"]
        assert fl.tree.equal(each.one.layers[1], tree.two.layers[1])
        assert fl.tree.equal(each.last, tree.last)
    with pytest.raises(fl.OtherStructureError, match="Arrays are tied in the file"):
        fl.load(file, like)
    with pytest.raises(fl.OtherStructureError, match="'two' is the same module as 'one' in the file"):
        fl.load(file, like.tie(ties))
    assert fl.tree.equal(fl.load(file, fl.from_mlx(Layers(True)).tie(ties)), tree)


@pytest.mark.parametrize("save", [saved, checkpoint, weights_of_checkpoint])
@pytest.mark.parametrize("count", [5, COUNT])
@pytest.mark.parametrize("strict", [True, False])
def test_load_weights_knows_tied_places(save: Any, count: int, strict: bool, tmp_path: Path) -> None:
    if (save, count) == (weights_of_checkpoint, 5):
        return  # it has no such directory
    model, like = tied(1, count), words(2, count)
    file = save(tmp_path, model)
    for given in (file, str(file), [file]):
        if given == [file] and file.is_dir():
            continue
        loaded = like.load_weights(given, strict)
        assert loaded.head.weight is loaded.words.weight
        assert fl.tree.equal(loaded.words.weight, model.words.weight)
        assert fl.tree.equal(loaded.norm, model.norm)
    assert fl.tree.equal(tied(2, count).load_weights(file, strict), model)
    headless = Headless(like.words, like.norm)
    assert fl.tree.equal(headless.load_weights(file, strict).words, model.words)


@pytest.mark.parametrize("strict", [True, False])
def test_load_weights_of_a_part_of_the_tree(strict: bool, tmp_path: Path) -> None:
    model, like = tied(1), words(2)
    file = saved(tmp_path, {"model": model, "n": 1, "x": [mx.zeros(1)]})

    def below(name: str) -> str | None:
        return name.removeprefix("model.") if name.startswith("model.") else None

    loaded = like.load_weights(file, strict, rename=below)
    assert loaded.head.weight is loaded.words.weight
    assert fl.tree.equal(loaded.words.weight, model.words.weight)
    kept = like.load_weights(file, False, rename=lambda name: None if "head" in name else below(name))
    assert kept.head.weight is like.head.weight
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \nhead.weight"):
        like.load_weights(file, rename=lambda name: None if "head" in name else below(name))


OTHER_WAY = {WORDS: HEAD}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("ending", [".safetensors", ".npz", "/"])
def test_weights_of_a_model_that_is_tied_the_other_way_round(ending: str, strict: bool, tmp_path: Path) -> None:
    model, like = tied(1), words(2).tie(OTHER_WAY)
    file = f"{tmp_path}/a{ending}"
    for one, other in ((model, like), (words(1).tie(OTHER_WAY), tied(2))):
        one.save_weights(file)
        loaded = other.load_weights(file, strict)
        assert loaded.head.weight is loaded.words.weight
        assert fl.tree.equal(loaded.words.weight, one.words.weight)
        assert fl.tree.structure(loaded) == fl.tree.structure(other)


@pytest.mark.parametrize("strict", [True, False])
def test_weights_under_the_names_of_several_tied_places(strict: bool) -> None:
    like = Twice({"a": mx.zeros(2), "b": mx.zeros(2)}, {"c": mx.zeros(2)}).tie({"one.b": "one.a", "two.c": "one.a"})
    for given in ({"one.b": mx.ones(2)}, {"two.c": mx.ones(2)}, {"one.b": mx.ones(2), "two.c": mx.ones(2)}):
        assert like.load_weights(given, strict).one["a"].tolist() == [1, 1]
    unlike = {"one.b": mx.ones(2), "two.c": mx.zeros(2)}
    if strict:
        with pytest.raises(ValueError, match=r"two.c, which is tied to 'one.a', whose array is used: rename=\{'two.c': None\}"):
            like.load_weights(unlike)
    assert like.load_weights(unlike, strict, rename={"two.c": None}).one["a"].tolist() == [1, 1]


@pytest.mark.parametrize("strict", [True, False])
def test_weights_under_both_names_of_what_is_tied(strict: bool, tmp_path: Path) -> None:
    model = tied(1)
    arrays = {WORDS: model.words.weight, HEAD: mx.array(model.words.weight), "norm": model.norm}
    mx.save_safetensors(f"{tmp_path}/a.safetensors", arrays)
    for like in (tied(2), words(2).tie(OTHER_WAY)):
        assert fl.tree.equal(like.load_weights(f"{tmp_path}/a.safetensors", strict).words, tied(1).words)


def test_a_tied_place_of_another_shape_is_told_as_its_source_is() -> None:
    like = words(2).tie(OTHER_WAY)
    given = {WORDS: mx.zeros((7, 3)), "norm": like.norm}
    with pytest.raises(ValueError, match=r"Expected shape \(5, 3\) but received shape \(7, 3\) for parameter head.weight"):
        like.load_weights(given)
    with pytest.warns(fl.UnmatchedWeightsWarning, match=r"For 'head.weight' to stay.*rename=\{'words.weight': None\}"):
        assert like.load_weights(given, strict=False).head.weight is given[WORDS]
    assert like.load_weights(given, strict=False, rename={WORDS: None}).head.weight is like.head.weight


def test_a_source_that_is_left_out_stays_as_it_is() -> None:
    like, given = tied(2), {WORDS: mx.ones((5, 3)), HEAD: mx.ones((5, 3)), "norm": mx.zeros(2)}
    assert like.load_weights(given, strict=False, rename={WORDS: None}).head.weight is like.head.weight
    assert like.load_weights(given, strict=False, rename={WORDS: HEAD, HEAD: None}).head.weight is given[WORDS]


@pytest.mark.parametrize("rename", [None, {}, lambda name: name.removeprefix("m.")])
def test_what_leaves_out_a_tied_name_goes_with_the_renaming(rename: Any) -> None:
    start = "m." if callable(rename) else ""
    given = {f"{start}{name}": array for name, array in zip(fl.tree.paths(words(1)), fl.tree.leaves(words(1)), strict=True)}
    with pytest.raises(ValueError, match=r"which is tied to 'words\.weight', whose array is used") as raised:
        tied(2).load_weights(given, rename=rename)
    advice = str(raised.value).partition("whose array is used: ")[2]
    if callable(rename):
        assert advice == "a rename that gives None for 'm.head.weight' leaves it out."
        return
    loaded = tied(2).load_weights(given, rename=eval(advice.removeprefix("rename=").removesuffix(" leaves it out.")))
    assert fl.tree.equal(loaded.words, words(1).words)


def test_in_a_model_of_mlx_lm(tmp_path: Path) -> None:
    llama = pytest.importorskip("mlx_lm.models.llama")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 16, "num_attention_heads": 2}
    args = llama.ModelArgs(model_type="llama", rms_norm_eps=1e-5, **sizes, tie_word_embeddings=False)
    ties = {"lm_head.weight": "model.embed_tokens.weight"}
    model, like = fl.from_mlx(llama.Model(args)).tie(ties), fl.from_mlx(llama.Model(args))
    file = saved(tmp_path, model)
    for loaded in (fl.load(file, like, strict=False)[0], like.load_weights(file), like.load_weights(file, strict=False)):
        assert fl.tree.equal(loaded.tie(ties), model)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_keys_with_words_of_the_description_in_them(tmp_path: Path) -> None:
    arrays = {"en to de": mx.ones(2), "a, b": mx.zeros(2), "c": mx.zeros(2)}
    model = Twice(arrays, {"x": mx.zeros(2)}).tie({"two.x": "one.c"})
    like = Twice({name: mx.zeros(2) for name in arrays}, {"x": mx.zeros(2)})
    assert fl.load(saved(tmp_path, model), like, strict=False)[1].new == ()
    for place in ("one.en to de", "one.a, b"):
        other = Twice(arrays, {"x": mx.zeros(2)}).tie({"two.x": place})
        assert fl.tree.equal(fl.load(saved(tmp_path, other), other), other)
        with pytest.raises(fl.OtherStructureError, match=r"two\.x: None in the file"):
            fl.load(tmp_path / "a.safetensors", like)


@pytest.mark.parametrize(
    ("ties", "names"),
    [
        ({"b": "a"}, {"b": "a"}),
        ({"d": "c"}, {"d.x": "c.x", "d.y": "c.y"}),
        ({"d": "c", "c.z": "a"}, {"c.z": "a", "d.x": "c.x", "d.y": "c.y", "d.z": "a"}),
        ({"d": "c", "e": "d.x"}, {"d.x": "c.x", "d.y": "c.y", "e": "c.x"}),
        ({"c.z": "c"}, {}),
        ({"d.x": "e", "e.x": "d"}, {}),
        ({"b": "nothing"}, {}),
    ],
)
def test_names_of_tied_places(ties: dict[str, str], names: dict[str, str]) -> None:
    text = ", ".join(f"{target} to {source}" for target, source in ties.items())
    facts = [Fact("", "tied", text), *[Fact(name, "", "array f32[2]") for name in ("a", "c.x", "c.y")]]
    assert ties_in(facts) == ties
    assert tied_names(facts) == names


def test_what_a_forged_file_says_of_ties_is_not_believed() -> None:
    for text in ("", "a", "a to b to c", " to ", ", "):
        assert not tied_names([Fact("", "tied", text), Fact("a", "", "array f32[2]")])
