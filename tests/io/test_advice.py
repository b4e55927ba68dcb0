"""What is said where a file's names are not those of the model: what it says to write works."""

from __future__ import annotations

import collections
import itertools
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl


class Model(fl.Module):
    backbone: fl.nn.Linear
    head: fl.nn.Linear


class Words(fl.Module):
    words: fl.nn.Embedding
    head: fl.nn.Linear
    other: fl.nn.Linear


def model() -> Model:
    return Model(fl.nn.Linear(2, 2), fl.nn.Linear(2, 3))


def words() -> Words:
    return Words(fl.nn.Embedding(5, 3), fl.nn.Linear(3, 5, bias=False), fl.nn.Linear(2, 3, bias=False))


def refused(folder: Path, tree: Any, like: Any, **options: Any) -> str:
    fl.save(folder / "run", tree)
    with pytest.raises(fl.OtherStructureError) as raised:
        fl.load(folder / "run", like, **options)
    return str(raised.value)


IN = {
    "tuple": lambda model: (model, 1),
    "second": lambda model: (mx.zeros(1), model),
    "list": lambda model: [model],
    "dict": lambda model: {"model": model, "step": 1},
    "two": lambda model: {"model": [{"x": 1}, model]},
    "with an average": lambda model: {"average": model, "model": model},
}  # fmt: skip


@pytest.mark.parametrize("where", [None, "backbone", "backbone.**", "**.weight"])
@pytest.mark.parametrize("name", IN)
def test_a_model_that_is_a_part_of_what_the_file_has(name: str, where: Any, tmp_path: Path) -> None:
    saved, mine = model(), model()
    for strict in (True, False):
        message = refused(tmp_path, IN[name](saved), mine, where=where, strict=strict)
        found = re.search(
            r"The file has them below .*: give (.*) for like, where=(.*), and take (.*) of what is loaded$", message
        )
        assert found, message
        like, selected, taken = found.groups()
        loaded = fl.load(tmp_path / "run", eval(like, {"model": mine}), where=eval(selected))
        part = eval(f"loaded{taken}", {"loaded": loaded})
        assert fl.tree.equal(part.backbone.weight, saved.backbone.weight)
        assert fl.tree.equal(part.head.weight, (mine if where and "backbone" in where else saved).head.weight)
    assert ("'average', 'model'" in message) == (name == "with an average")


@pytest.mark.parametrize("where", [None, "0", "0.backbone.**"])
def test_a_model_in_more_than_the_file_has(where: Any, tmp_path: Path) -> None:
    message = refused(tmp_path, model(), (model(),), where=where)
    end = ", where='backbone.**'" if where == "0.backbone.**" else ""
    assert message.endswith(f"The file has them without '0': give for like what is at '0' in it{end}")


def test_below_what_is_no_container_nothing_is_said(tmp_path: Path) -> None:
    pair = collections.namedtuple("Pair", "a b")
    for tree in (pair(model(), 1), fl.nn.Sequential(model()), {1: model()}, {"a.b": model()}):
        assert "The file has them" not in refused(tmp_path, tree, model(), where="backbone.**")


def test_where_something_is_there_nothing_is_said_of_the_place(tmp_path: Path) -> None:
    like = model()
    tree = {"model": like, "backbone": fl.nn.Linear(2, 2, bias=False)}
    assert "The file has them" not in refused(tmp_path, tree, like, where="backbone.**")


def test_a_model_without_the_adapters_of_the_file_or_the_reverse(tmp_path: Path) -> None:
    plain = model()
    adapted = fl.lora(plain, "backbone", rank=2)
    for where in (None, "backbone", "backbone.**"):
        message = refused(tmp_path, adapted, plain, where=where)
        assert re.search(r"model with adapters, and this one has none: make them first, fl.lora\(model, where, rank=", message)
        message = refused(tmp_path, plain, adapted, where=where)
        assert message.endswith("load into the model without them, and call fl.lora then")
        changed = plain.at("head").set(fl.nn.Linear(2, 4))
        assert ("adapters" in refused(tmp_path, adapted, changed, where="head")) is False
    adapted.save_weights(tmp_path / "adapted.safetensors")
    plain.save_weights(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"Received 4 parameters not in model(.|\n)*with adapters, and this one has none"):
        plain.load_weights(tmp_path / "adapted.safetensors")
    with pytest.raises(ValueError, match=r"Received 2 parameters not in model(.|\n)*without adapters, and this one has some"):
        adapted.load_weights(tmp_path / "plain.safetensors")
    with pytest.warns(fl.UnmatchedWeightsWarning, match="without adapters, and this one has some"):
        fl.lora(plain, "**").load_weights(tmp_path / "plain.safetensors", strict=False)
    adapted = fl.lora(plain, "backbone", rank=3)
    assert "adapters" not in refused(tmp_path, fl.lora(plain, "backbone", rank=2), adapted)


ALONE = "load into the model without them, and call fl.lora then"


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_not_of_a_model_without_adapters_is_not_said_to_be(strict: bool, tmp_path: Path) -> None:
    adapted = fl.lora(model(), "backbone", rank=2)
    for tree in (None, mx.zeros(2), {"other": mx.zeros(2)}, fl.nn.Linear(2, 3)):
        assert "fl.lora" not in refused(tmp_path, {"m": tree}, {"m": adapted}, strict=strict)
        assert "fl.lora" not in refused(tmp_path, {"m": adapted}, {"m": tree}, strict=strict)
    for plain in (model(), {"x": model()}):
        assert refused(tmp_path, plain, adapted).endswith(ALONE)
    with pytest.raises(ValueError, match="not in model") as raised:
        adapted.load_weights({"vectors.float32": mx.zeros(3)})
    assert "fl.lora" not in str(raised.value)


@pytest.mark.parametrize("inside", ["like", "{'m': like}", "(like, None)", "[[like]]"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_packed_model_of_one_alone(inside: str, strict: bool, tmp_path: Path) -> None:
    plain, adapted = model(), fl.lora(model(), "backbone", rank=2)
    for each in (plain, adapted):
        packed = fl.optim.pack(each)
        for tree, like, code in ((packed, each, r"fl\.optim\.pack\(.*\)"), (each, packed, r".*\.unpack\(\)")):
            outer = eval(inside, {"like": like})
            text = refused(tmp_path, eval(inside, {"like": tree}), outer, strict=strict)
            found = re.search(rf"The file has a (?:packed )?model.*: give like ({code}) there", text)
            assert found, text
            assert "fl.lora" not in text
            remedied = eval(inside, {"like": eval(found[1], {"like": outer, "fl": fl})})
            assert fl.tree.equal(fl.load(tmp_path / "run", remedied), eval(inside, {"like": tree}))


def quantizable(*, quantized: bool, adapted: bool) -> Any:
    made: Any = fl.nn.Sequential(fl.nn.Linear(32, 32), fl.nn.Linear(32, 32))
    made = fl.quantize(made, group_size=32) if quantized else made
    return fl.lora(made, "layers.1", rank=2) if adapted else made


@pytest.mark.parametrize("reverse", [False, True])
def test_adapters_around_quantized_layers(reverse: bool, tmp_path: Path) -> None:
    trees = [quantizable(quantized=each, adapted=each) for each in (reverse, not reverse)]
    texts = [refused(tmp_path, *trees)]
    trees[0].save_weights(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="not in model") as raised:
        trees[1].load_weights(tmp_path / "a.safetensors")
    said = "quantize it as that was" if reverse else "load into a model with neither, and call fl.quantize"
    assert all(said in text for text in (*texts, str(raised.value)))
    # What is as well adapted, or as well quantized, has nothing of this.
    for name in ("quantized", "adapted"):
        pair = [quantizable(**{"quantized": True, "adapted": True, name: each}) for each in (False, True)]
        assert ("fl.lora" in refused(tmp_path, *pair)) == (name == "adapted")
    pair = [quantizable(quantized=each, adapted=not each) for each in (False, True)]
    assert "fl.lora" not in refused(tmp_path, *pair)


def test_adapters_alone() -> None:
    adapted = fl.lora(model(), "backbone", rank=2)
    given = {name: array for name, array in zip(fl.tree.paths(adapted), fl.tree.leaves(adapted), strict=True) if "lora" in name}
    with pytest.raises(ValueError, match=r"They are adapters of LoRA, for a model that has them: fl.lora\(model\) or"):
        model().load_weights(given)
    assert fl.tree.equal(adapted.load_weights(given, strict=False), adapted)


TIES = {"head.weight": "words.weight"}


@pytest.mark.parametrize("inside", [lambda tree: tree, lambda tree: {"x": tree}, lambda tree: [0, (1, tree)]])
@pytest.mark.parametrize("where", [None, "**"])
def test_ties_the_other_way_round(inside: Any, where: Any, tmp_path: Path) -> None:
    tied, like = words().tie(TIES), words().tie({"words.weight": "head.weight"})
    message = refused(tmp_path, inside(tied), inside(like), where=where)
    code = message.partition("strict=True takes like with those of the file, as in ")[2]
    mended = eval(code, {"like": inside(like)})
    assert fl.tree.structure(mended) == fl.tree.structure(tied)
    assert fl.tree.equal(fl.load(tmp_path / "run", inside(mended), where=where), inside(tied))
    loaded = fl.load(tmp_path / "run", inside(like), where=where, strict=False)[0]
    assert fl.tree.structure(loaded) == fl.tree.structure(inside(like))
    assert [leaf.tolist() for leaf in fl.tree.leaves(loaded)][:1] == [leaf.tolist() for leaf in fl.tree.leaves(inside(tied))][
        :1
    ]


def test_three_places_that_are_tied_to_another_of_them(tmp_path: Path) -> None:
    tree = fl.nn.Sequential(*[fl.nn.Linear(2, 2, bias=False) for _ in range(4)])

    def tied(first: int, *others: int) -> fl.nn.Sequential:
        return tree.tie({f"layers.{number}.weight": f"layers.{first}.weight" for number in others})

    for model, like in itertools.permutations([tied(0, 1, 2), tied(1, 0, 2), tied(2, 1, 0), tied(2, 0), tied(0, 1), tree], 2):
        given, message = like, "."
        for _ in range(3):
            fl.save(tmp_path / "run", model)
            try:
                loaded = fl.load(tmp_path / "run", given)
            except fl.OtherStructureError as error:
                message = str(error)
            else:
                assert fl.tree.equal(loaded, model)
                break
            if "like has ties that the file has not: load into the model without them" in message:
                given = given.untie()
            else:
                given = eval(re.search(r"as in (like\..*)$", message)[1], {"like": given})  # type: ignore[index]
        else:
            pytest.fail(message)


def test_ties_of_one_alone(tmp_path: Path) -> None:
    like = words()
    tied = like.tie(TIES)
    for inside in (lambda tree: tree, lambda tree: {"x": tree}, lambda tree: [0, (1, tree)]):
        for where in (None, "**", fl.nn.Linear):
            message = refused(tmp_path, inside(tied), inside(like), where=where)
            remedy = message.partition("Arrays are tied in the file: tie the same first, as in ")[2]
            assert fl.tree.equal(eval(remedy, {"like": inside(like)}), tied)
            message = refused(tmp_path, inside(like), inside(tied), where=where)
            assert "like has ties that the file has not: load into the model without them" in message
    assert "like.tie({'head.weight': 'words.weight'})" in refused(tmp_path, tied, like, where="head.weight")
    assert fl.tree.equal(fl.load(tmp_path / "run", like.tie(TIES)), tied)
    other = like.at("other").set(fl.nn.Linear(2, 4, bias=False))
    assert "Arrays are tied" not in refused(tmp_path, tied, other, where="other")


@pytest.mark.parametrize("missing", [("head",), ("head", "other")])
@pytest.mark.parametrize("rename", [None, {}, lambda name: name])
def test_weights_whose_tied_matrices_are_missing(missing: tuple[str, ...], rename: Any) -> None:
    like = words()
    arrays = zip(fl.tree.paths(like), fl.tree.leaves(like), strict=True)
    given = {name: array for name, array in arrays if name.split(".")[0] not in missing}
    with pytest.raises(ValueError, match=r"Missing . parameters") as raised:
        like.load_weights(given, rename=rename)
    found = re.search(r"If 'head.weight' is to be the same array as 'words.weight', .*: model = (.*)\.$", str(raised.value))
    assert found, raised.value
    tied = eval(found[1], {"model": like})
    if missing == ("head",):
        assert fl.tree.equal(tied.load_weights(given, rename=rename), like.tie(TIES))


def test_several_tied_matrices_are_told_at_once() -> None:
    like = words().replace(other=fl.nn.Linear(3, 5, bias=False))
    given = {"words.weight": mx.zeros((5, 3))}
    with pytest.raises(ValueError, match=r"'head.weight' and 'other.weight' are to be the same arrays") as raised:
        like.load_weights(given)
    tied = eval(str(raised.value).rpartition("model = ")[2].rstrip("."), {"model": like})
    assert fl.tree.equal(tied.load_weights(given).words.weight, given["words.weight"])


def make(size: int = 2) -> Model:
    return Model(fl.nn.Linear(size, size), fl.nn.Linear(size, 3))


class Net(fl.Module):
    layer: fl.nn.Linear

    def __init__(self, size: int = 2) -> None:
        self.layer = fl.nn.Linear(size, size)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("like", "words"),
    [
        (Net, "the class Net,"),
        ({"layer": fl.nn.Linear}, "the class Linear at 'layer',"),
        (make, "the function make,"),
        (lambda: Net(3), "the function make,"),
    ],
)
def test_a_class_or_function_instead_of_what_it_makes(like: Any, words: str, strict: bool, tmp_path: Path) -> None:
    message = refused(tmp_path, {"layer": fl.nn.Linear(2, 2)} if isinstance(like, dict) else Net(), like, strict=strict)
    assert f"like has {words} and none of what it makes: give fl.eval_shape(" in message


def test_what_a_class_makes_is_restored_as_the_message_says(tmp_path: Path) -> None:
    for given, saved in (((), Net()), ((3,), Net(3))):
        with fl.Checkpointer(tmp_path) as checkpoints:
            checkpoints.save(1, saved)
            with pytest.raises(fl.OtherStructureError, match="like has the class Net, and none") as raised:
                checkpoints.restore(Net)
            found = re.search(r"give (fl.eval_shape)\((Net)\)", str(raised.value))
            assert found
            like = eval(found[1])(eval(found[2]), *given)
            assert fl.tree.equal(checkpoints.restore(like)[1], saved)


def test_functions_and_classes_that_are_structure_are_not_told_of(tmp_path: Path) -> None:
    tree = {"function": make, "class": Net, "w": mx.ones(2)}
    assert "what it makes" not in refused(tmp_path, tree, {**tree, "w": mx.ones(3)})
    assert "what it makes" not in refused(tmp_path, tree, {**tree, "function": model})
    assert fl.tree.equal(fl.load(tmp_path / "run", {**tree, "w": mx.zeros(2)}), tree)


def wide() -> Model:
    return Model(fl.nn.Linear(32, 32), fl.nn.Linear(32, 3))


@pytest.mark.parametrize("make", [wide, lambda: fl.nn.Linear(32, 2), lambda: fl.nn.Embedding(3, 32)])
@pytest.mark.parametrize("options", [{"group_size": 32, "bits": 8}, {"mode": "mxfp4"}])
def test_a_quantized_model_for_one_that_is_not_or_the_reverse(make: Any, options: dict[str, Any], tmp_path: Path) -> None:
    plain = make()
    small = fl.quantize(plain, **options)
    small.save_weights(tmp_path / "small.safetensors")
    plain.save_weights(tmp_path / "plain.safetensors")
    words = r"of a quantized model, and this one isn't: quantize it first, fl.quantize\(model, group_size="
    with pytest.raises(ValueError, match=rf"parameters not in model(.|\n)*{words}"):
        plain.load_weights(tmp_path / "small.safetensors")
    assert re.search(words, refused(tmp_path, small, plain))
    assert fl.tree.equal(fl.quantize(make(), **options).load_weights(tmp_path / "small.safetensors"), small)
    words = "isn't quantized, and this one is: load into the model as it was before fl.quantize, and call that then"
    with pytest.raises(ValueError, match=rf"Missing . parameters(.|\n)*{words}"):
        small.load_weights(tmp_path / "plain.safetensors")
    assert words in refused(tmp_path, plain, small)
    assert fl.tree.equal(fl.quantize(make().load_weights(tmp_path / "plain.safetensors"), **options), small)


def test_models_that_are_both_quantized_or_not_are_told_nothing_of_that(tmp_path: Path) -> None:
    plain, other = wide(), fl.nn.Sequential(fl.nn.Linear(32, 2))
    for one, two in ((plain, other), (fl.quantize(plain, 32), fl.quantize(other, 32)), (fl.quantize(plain, 32), other)):
        assert "quantize" not in refused(tmp_path, one, two)
    assert "quantize" not in refused(tmp_path, plain, plain.at("head").set(fl.nn.Linear(32, 4)))


class Block(fl.Module):
    inside: fl.nn.Linear
    dropout: fl.nn.Dropout
    head: fl.nn.Linear


def block(rate: float = 0.5) -> Any:
    return Block(fl.nn.Linear(2, 2), fl.nn.Dropout(rate), fl.nn.Linear(2, 3))


def switched(module: Any, *paths: str, mode: bool) -> Any:
    return module.at([*paths]).apply(lambda each: each.train(mode))


MODES = {
    "training": block(),
    "evaluation": block().eval(),
    "a part": switched(block(), "head", mode=False),
    "two": switched(block(), "head", "dropout", mode=False),
    "all but one": switched(block().eval(), "inside", mode=True),
}


@pytest.mark.parametrize("inside", ["like", "{'m': like}", "(1, {'m': [like]})"])
@pytest.mark.parametrize(("one", "other"), [*itertools.permutations(MODES, 2)])
def test_a_packed_model_in_another_mode(one: str, other: str, inside: str, tmp_path: Path) -> None:
    trees = [eval(inside, {"like": fl.optim.pack(MODES[name])}) for name in (one, other)]
    tree, like = trees
    fl.save(tmp_path / "run", tree)
    for _ in range(4):
        text = refused(tmp_path, tree, like)
        assert "layout').set" not in text
        assert len(text.splitlines()[1]) < 150
        assert "in evaluation mode" in text
        code = re.search(r"give like (fl\.optim\.pack\(.*\)) there$", text)
        assert code is not None, text
        like = eval(inside, {"like": eval(code[1], {"like": like, "fl": fl})})
        if fl.tree.structure(like) == fl.tree.structure(tree):
            break
    assert fl.tree.equal(fl.load(tmp_path / "run", like), tree)


def test_a_packed_model_of_other_modules(tmp_path: Path) -> None:
    text = refused(tmp_path, {"m": fl.optim.pack(block())}, {"m": fl.optim.pack(block(0.25).eval())})
    assert "m.layout (static): dropout.p static 0.5 in the file" in text
    assert text.endswith("The packed model at 'm' is of other modules than like's: pack one that is as in the file")


def test_the_layout_of_a_packed_model_is_not_set() -> None:
    packed = fl.optim.pack(block())
    for call in (lambda: packed.at("layout").set(1), lambda: packed.replace(layout=None)):
        with pytest.raises(TypeError, match=r"the layout says where each array is, .*: write fl.optim.pack\(model\)"):
            call()
    assert packed.replace(layout=packed.layout) is packed


@pytest.mark.parametrize("rename", [lambda name: name, {}])
def test_a_model_that_is_packed_in_one_alone_with_other_names(rename: Any, tmp_path: Path) -> None:
    plain, packed = block(), fl.optim.pack(block())
    for tree, like in ((plain, packed), (packed, plain)):
        fl.save(tmp_path / "run", {"m": tree})
        with pytest.raises(fl.OtherStructureError) as raised:
            fl.load(tmp_path / "run", {"m": like}, rename=rename)
        code = re.search(r"give like (.*?) there", str(raised.value))
        assert code is not None
        remedied = {"m": eval(code[1], {"like": {"m": like}, "fl": fl})}
        assert fl.tree.equal(fl.load(tmp_path / "run", remedied, rename=rename), {"m": tree})


@pytest.mark.parametrize("where", ["m.head.**", "m.head", "m.head.weight"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_part_of_a_packed_model(where: str, packed: bool, tmp_path: Path) -> None:
    model, other = block(), block()
    fl.save(tmp_path / "run", {"m": fl.optim.pack(model), "n": 1})
    like = {"m": fl.optim.pack(other) if packed else other, "n": 0}
    with pytest.raises((LookupError, fl.OtherStructureError)) as raised:
        fl.load(tmp_path / "run", like, where=where)
    text = str(raised.value)
    assert "The file has a packed model at 'm', which is read whole: give like fl.optim.pack(model) there" in text
    assert "unpack() first" not in text
    whole = eval(re.search(r"with where=('.*?')", text)[1])  # type: ignore[index]
    loaded = fl.load(tmp_path / "run", {"m": fl.optim.pack(other), "n": 0}, where=whole)
    assert fl.tree.equal(loaded["m"].unpack().head, model.head)
    fl.save(tmp_path / "alone", fl.optim.pack(model))
    with pytest.raises((LookupError, fl.OtherStructureError), match="The file is a packed model, which is read whole"):
        fl.load(tmp_path / "alone", like["m"], where=where.removeprefix("m."))


def test_the_vectors_of_a_packed_model_are_none_of_its_parts_that_are_missing(tmp_path: Path) -> None:
    fl.save(tmp_path / "run", {"m": fl.optim.pack(block()), "n": 1})
    for where in ("m.vectors.float16", "m.large.**", "x.head"):
        with pytest.raises(LookupError) as raised:
            fl.load(tmp_path / "run", {"m": fl.optim.pack(block()), "n": 1}, where=where)
        assert "read whole" not in str(raised.value)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_weights_of_a_packed_model(dtype: mx.Dtype, tmp_path: Path) -> None:
    model = block().astype(dtype)
    fl.save(tmp_path / "run", fl.optim.pack(model))
    with pytest.raises(ValueError, match=r"They are of a packed model \(fl.optim.pack\)") as raised:
        block().load_weights(tmp_path / "run")
    with pytest.warns(fl.UnmatchedWeightsWarning, match=r"They are of a packed model \(fl.optim.pack\)"):
        _ = block().load_weights(tmp_path / "run", strict=False)
    code = re.search(r"as in (fl\.load\(.*?\)\)),", str(raised.value))
    assert code is not None
    names = {"fl": fl, "file": tmp_path / "run", "model": block().astype(dtype)}
    assert fl.tree.equal(eval(code[1], names).unpack(), model)
