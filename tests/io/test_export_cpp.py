"""A program in C++ calls an exported function with the arrays of a file of weights, without Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl

MLX = Path(mx.__file__).parent
COMPILER = shutil.which("g++")
CLIENT = """
#include "mlx/export.h"
#include "mlx/io.h"

namespace mx = mlx::core;

int main(int, char** files) {
  auto fn = mx::import_function(files[1]);
  auto weights = mx::load_safetensors(files[2]).first;
  auto inputs = mx::load_safetensors(files[3]).first;
  mx::save_safetensors(files[4], {{"logits", fn({inputs.at("x")}, weights)[0]}});
}
"""


def predict(model: Any, x: mx.array) -> Any:
    return {"logits": model(x)}


@pytest.mark.long
@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs g++, and MLX's library for Linux")
def test_a_program_in_cpp_computes_the_same(tmp_path: Path) -> None:
    names = ("client", "f.mlxfn", "model.safetensors", "inputs.safetensors", "outputs.safetensors")
    client, function, weights, inputs, outputs = files = [str(tmp_path / name) for name in names]
    model = fl.nn.Sequential(fl.nn.Linear(4, 8), fl.nn.relu, fl.nn.Linear(8, 3))
    fl.export_function(function, predict, model, mx.random.normal((5, 4)), shapeless=True)
    model.save_weights(weights)
    x = mx.random.normal((9, 4))
    mx.save_safetensors(inputs, {"x": x})
    (tmp_path / "client.cpp").write_text(CLIENT)
    paths = [f"-I{MLX / 'include'}", f"-L{MLX / 'lib'}", f"-Wl,-rpath,{MLX / 'lib'}"]
    command = [str(COMPILER), "-std=c++20", *paths, str(tmp_path / "client.cpp"), "-lmlx", "-o", client]
    subprocess.run(command, check=True, timeout=300)
    subprocess.run(files, check=True, timeout=60)
    found: Any = mx.load(outputs)
    assert fl.tree.equal(found, predict(model, x))
