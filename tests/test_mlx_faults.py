"""Faults of MLX that this library guards against. If a test fails here, MLX is mended, and the guard can go.

Each program uses MLX alone, in a process of its own. One fault is left out, since it shows only now and then: MLX may end a
process that exits soon after ``mx.load`` of an open ``.npz`` file (``frostleaf/io/npz.py``).
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="other processors survive a division by zero, and other systems use other libraries",
)

GGUF = """
import struct

def string(text):
    return struct.pack("<Q", len(text)) + text

def array(shape=(4,), kind=0):
    return string(b"a") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]) + struct.pack("<IQ", kind, 0)

def value(name, kind, data):
    return string(name) + struct.pack("<I", kind) + data

def load(array, value=b"", arrays=1):
    head = b"GGUF" + struct.pack("<IQQ", 3, arrays, bool(value)) + value + array
    with open("x.gguf", "wb") as file:
        file.write(head + bytes(-len(head) % 32 + 4096))
    return mx.load("x.gguf")
"""

# Programs that end the process: by a signal, or in MLX's BLAS, which prints a message and exits.
ENDING = {
    # io/gguf.py
    "a GGUF name longer than the file": GGUF + 'load(struct.pack("<Q", 2**62) + b"a")',
    "a GGUF file that has fewer arrays than it says": GGUF + "load(array(), arrays=2**63)",
    "a GGUF array of nine axes": GGUF + "load(array((1,) * 9))",
    "a GGUF array of type 4": GGUF + "load(array((256,), 4))",
    "a float64 in GGUF metadata": GGUF + 'load(array(), value(b"key", 12, bytes(8)))',
    "a GGUF alignment of 0": GGUF + 'load(array(), value(b"general.alignment", 4, bytes(4)))',
    # nn/activations.py
    "log_softmax of one number": "import mlx.nn as nn; mx.eval(nn.log_softmax(mx.ones((2, 1)), -1))",
    # nn/checks.py, size
    "a convolution without output channels": "mx.eval(mx.conv2d(mx.ones((1, 4, 4, 2)), mx.ones((0, 3, 3, 2))))",
    "a convolution without input channels": "mx.eval(mx.conv2d(mx.ones((1, 4, 4, 0)), mx.ones((2, 3, 3, 0))))",
    "a convolution with a kernel of size 0": "mx.eval(mx.conv2d(mx.ones((1, 4, 4, 2)), mx.ones((2, 0, 3, 2))))",
    "a convolution in no groups": "mx.eval(mx.conv2d(mx.ones((1, 4, 4, 2)), mx.ones((2, 3, 3, 2)), groups=0))",
    # nn/quantized.py
    "quantization in groups of 0": "mx.quantize(mx.ones((2, 64)), group_size=0)",
    "the quantized product of an empty batch": "mx.eval(mx.quantized_matmul(mx.ones((0, 64)), *mx.quantize(mx.ones((2, 64)))))",
    # transforms/checkpoint.py
    "a checkpoint that returns nothing": "mx.checkpoint(lambda x: [])(mx.ones(1))",
    # transforms/compiled.py, Dropped
    "a trace that holds the last reference to a compiled function": """
outer = mx.compile(lambda x: mx.checkpoint(mx.compile(lambda y: y * 2))(x))
mx.eval(outer(mx.ones(2)))
del outer
""",
}

# Programs that print what they shouldn't, and what that is.
WRONG = {
    # io/gguf.py
    "a GGUF array of an unknown type is left out": (GGUF + "print(load(array((256,), 39)))", "{}"),
    # io/safetensors.py, read_header
    "safetensors arrays may lie over one another": (
        """
import json, struct
entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}
text = json.dumps(entries).encode()
with open("x.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + bytes(8))
print(len(mx.load("x.safetensors")))
""",
        "2",
    ),
    # nn/convolution.py
    "grouped convolutions of mapped weights are others": (
        """
x, weights = mx.arange(64.0).reshape(2, 4, 4, 2), mx.arange(54.0).reshape(3, 2, 3, 3, 1)
mapped = mx.vmap(lambda weight: mx.conv2d(x, weight, groups=2))(weights)
print(mx.array_equal(mapped, mx.stack([mx.conv2d(x, weight, groups=2) for weight in weights])).item())
""",
        "False",
    ),
    # transforms/compiled.py, Shell
    "no compiled function can be called while a trace is forgotten": (
        """
import sys

class Calling:
    def __del__(self):
        other(mx.ones(4))

def function(x):
    calling = Calling()
    return mx.checkpoint(lambda y: (calling, y * 2)[1])(x)

sys.unraisablehook = lambda raised: print(raised.exc_value)
other = mx.compile(lambda x: x + 1)
compiled = mx.compile(function)
compiled(mx.ones(3))
del compiled
""",
        "Resource deadlock avoided",
    ),
    "a compiled function is taken for another that had its address": (
        """
from concurrent.futures import ThreadPoolExecutor

x = mx.ones(1)
make = lambda count: lambda x: [x] * count
with ThreadPoolExecutor(1) as pool:
    one = make(1)
    address, compiled = id(one), mx.compile(one)
    pool.submit(lambda: len(compiled(x))).result()
    compiled(x)
    del one, compiled
    others = [make(2)]
    while id(others[-1]) != address and len(others) < 1000:
        others.append(make(2))
    compiled = mx.compile(others[-1])
    print(pool.submit(lambda: len(compiled(x))).result())
""",
        "1",
    ),
    # transforms/random.py, restore_state
    "an assignment to the random state changes arrays that others hold": (
        "held = mx.random.state[0]; mx.random.state[0][...] = mx.random.key(7); print(held.tolist())",
        "[0, 7]",
    ),
}


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program on the CPU.

    What it prints is written at once, as MLX now and then ends a process that has compiled in another thread while it exits.
    """
    program = f"import mlx.core as mx\nmx.set_default_device(mx.cpu)\n{program}\nprint('the end')"
    command = [sys.executable, "-u", "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ENDING)
def test_mlx_still_ends_the_process(name: str, tmp_path: Path) -> None:
    done = run(ENDING[name], tmp_path)
    assert "the end" not in done.stdout
    assert done.returncode < 0 or "On entry to SGEMM" in done.stdout + done.stderr, done.stderr


@pytest.mark.parametrize("name", WRONG)
def test_mlx_still_does_what_is_wrong(name: str, tmp_path: Path) -> None:
    program, printed = WRONG[name]
    done = run(program, tmp_path)
    assert done.stdout == f"{printed}\nthe end\n", done.stderr


def test_a_gguf_file_without_a_fault_is_read(tmp_path: Path) -> None:
    done = run(GGUF + 'print(load(array(), value(b"key", 4, bytes(4)))["a"].tolist())', tmp_path)
    assert done.stdout == "[0.0, 0.0, 0.0, 0.0]\nthe end\n", done.stderr
