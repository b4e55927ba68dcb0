"""Where static values differ: told by the names of their parts, once, and in the words of who wrote them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import llama

import frostleaf as fl
from frostleaf.io.told import unlike


def model(**changed: Any) -> Any:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9, "num_attention_heads": 2}
    return fl.from_mlx(llama.Model(llama.ModelArgs(model_type="llama", **{"rms_norm_eps": 1e-5, **sizes, **changed})))


def said(tree: Any, like: Any, folder: Path, **options: Any) -> list[str]:
    fl.save(folder / "a", tree)
    with pytest.raises(fl.OtherStructureError) as caught:
        fl.load(folder / "a", like, **options)
    return str(caught.value).splitlines()[1:]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rope_theta": 500.0}, "args.rope_theta (static): 10000 in the file, 500.0 in like, and so at 2 more"),
        ({"rms_norm_eps": 1e-6}, "args.rms_norm_eps (static): 1e-05 in the file, 1e-06 in like, and so at 2 more"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "args.rope_scaling (static): None in the file, {'type': 'linear', 'factor': 2.0} in like, and so at 2 more",
        ),
    ],
)
def test_a_field_of_a_configuration_is_told_once(changed: dict[str, Any], expected: str, tmp_path: Path) -> None:
    lines = said(model(), model(**changed), tmp_path)
    assert lines[0] == expected
    assert sum("args" in line for line in lines[:-1]) == 1
    assert not any("builtins" in line for line in lines)


@pytest.mark.parametrize("size", [3, 300])
def test_what_is_kept_is_told_as_python_writes_it(size: int, tmp_path: Path) -> None:
    class Logged(nn.Module):
        def __init__(self, history: Any, settings: Any) -> None:
            super().__init__()
            self.weight = mx.ones(2)
            self.history = history
            self.settings = settings

    one, other = [fl.from_mlx(Logged([1.0] * size + [end], {"a": [1, None], "b c": end})) for end in (2.0, "x")]
    lines = said(one, other, tmp_path)
    assert lines[0].startswith("history (static): " + ("[1.0, 1.0, 1.0, 2.0] in the file" if size == 3 else "...1.0, 1.0"))
    assert lines[0].endswith("1.0, 'x'] in like")
    assert lines[1] == "settings (static): {'a': [1, None], 'b c': 2.0} in the file, {'a': [1, None], 'b c': 'x'} in like"


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 2
    name: str = "x" * 80
    inner: Any = None


class Holder(fl.Module):
    weight: mx.array
    config: Any = fl.static()


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Config(2), Config(3), ["config.size (static): 2 in the file, 3 in like"]),
        (
            Config(inner=Config(name="(")),
            Config(3, inner=Config(name="', 'y")),
            [
                "config.size (static): 2 in the file, 3 in like",
                "config.inner.name (static): '(' in the file, \"', 'y\" in like",
            ],
        ),
        ({"size": 2, "n": "x" * 80}, {"size": 3, "n": "x" * 80}, ["config.size (static): 2 in the file, 3 in like"]),
        ({"size": 2, "n": "x" * 80}, {"n": "x" * 80}, ["config.size (static): 2 in the file, nothing in like"]),
        (Config(name="y"), 7, ["config (static): test_told.Config(size=2, name='y', inner=None) in the file, 7 in like"]),
    ],
)
def test_a_value_with_named_parts_is_told_by_these(one: Any, other: Any, expected: list[str], tmp_path: Path) -> None:
    lines = said(Holder(mx.ones(2), one), Holder(mx.ones(2), other), tmp_path)
    assert [line.replace(__name__, "test_told") for line in lines[: len(expected)]] == expected


@pytest.mark.parametrize(
    "text", ["(" * 10_000, "((a)", "a)b", "[(])", "'", '"a', "(,)", "", "()", "(a, )", "{" * 50 + "}" * 50]
)
def test_any_text_is_told(text: str) -> None:
    assert unlike(text, "other", 80)[0][2] == "other"
    assert unlike("other", text, 80)
