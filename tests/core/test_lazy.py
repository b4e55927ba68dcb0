"""Names that are imported when they are first used."""

import inspect
import operator
import re
import subprocess
import sys

import pytest

import frostleaf as fl
from frostleaf.core.lazy import lazily

# What a program that only defines modules does not wait for.
LATER = ("nn", "optim", "transforms", "io.weights", "io.trees", "io.checkpointer", "io.safetensors", "io.gguf")
STANDARD = ("datetime", "decimal", "json", "pathlib", "shutil", "sysconfig", "urllib.parse", "zlib", "contextvars")


def run(script):
    """Run a script in a new process, and return what it prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.stdout


def loaded_by(script):
    """Return the modules that a script loads, beside those that come with what frostleaf needs."""
    before = "import sys\nimport mlx.nn, mlx.optimizers, optree, attrs\nbefore = {*sys.modules}\n"
    return run(f"{before}{script}\nsys.stdout.write(' '.join({{*sys.modules}} - before))").split()


def test_importing_loads_what_every_program_uses_and_no_more():
    loaded = loaded_by("import frostleaf as fl\nclass Affine(fl.Module):\n    weight: object\nrepr(Affine(None))")
    assert not {f"frostleaf.{name}" for name in LATER} & {*loaded}
    assert not {*STANDARD} & {*loaded}
    assert len([name for name in loaded if name.startswith("frostleaf.")]) < 50


def test_a_layer_loads_its_own_file_and_what_that_needs():
    loaded = loaded_by("import frostleaf as fl\nfl.nn.Embedding(2, 3)")
    layers = {name.removeprefix("frostleaf.nn.") for name in loaded if name.startswith("frostleaf.nn.")}
    assert "embedding" in layers
    assert not {"activations", "convolution", "pooling", "recurrent", "transformer", "normalization"} & layers


def test_an_optimizer_and_a_compiled_step_load_nothing_of_files():
    loaded = loaded_by("import frostleaf as fl\nfl.nn.Linear, fl.optim.AdamW(1e-3), fl.value_and_grad, fl.jit")
    assert [name for name in loaded if name.startswith("frostleaf.io.")] == []


def test_listing_the_names_loads_nothing():
    loaded = loaded_by("import frostleaf as fl\nassert 'Linear' in dir(fl.nn) and 'AdamW' in dir(fl.optim)")
    assert [name for name in loaded if name.startswith(("frostleaf.nn.", "frostleaf.optim."))] == []


@pytest.mark.parametrize(
    "script",
    [
        "from frostleaf.nn import Linear\nLinear(2, 3)",
        "from frostleaf import nn, optim, jit, load\nnn.Linear(2, 3), optim.SGD(0.1)",
        "from frostleaf import *\nnn.Linear(2, 3), optim.SGD(0.1), jit, load",
        "from frostleaf.nn import *\nLinear(2, 3)",
        "from frostleaf.optim import *\nSGD(0.1)",
        "import frostleaf.nn.linear\nfrostleaf.nn.linear.Linear(2, 3)",
        "import frostleaf as fl\nassert fl.nn.linear.Linear is fl.nn.Linear is vars(fl.nn)['Linear']",
        "import frostleaf as fl\nassert fl.io.weights and fl.transforms and fl.optim.rules.SGD is fl.optim.SGD",
        "import frostleaf as fl, inspect\nassert dict(inspect.getmembers(fl.nn))['Linear'] is fl.nn.Linear",
        "import frostleaf as fl, typing\nassert 'rename' in typing.get_type_hints(fl.Module.load_weights)",
    ],
)
def test_every_way_to_a_name_leads_there(script):
    assert run(script) == ""


def test_a_name_is_the_same_in_threads_that_meet_it_at_once():
    script = """
import sys, threading
import frostleaf as fl

names, start, found = [*fl.nn.__all__], threading.Barrier(8), []

def look(number):
    start.wait()
    turned = names[number * 9:] + names[:number * 9]
    found.append({name: getattr(fl.nn, name) for name in turned})

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 8
assert all(each[name] is found[0][name] for each in found for name in names)
assert all(fl.tree.leaves(fl.nn.Linear(2, 3)) for each in found)
"""
    assert run(script) == ""


def test_a_pickle_is_read_in_a_program_that_has_used_no_layer():
    script = "import pickle, sys, frostleaf\n"
    layer = run(f"{script}sys.stdout.write(pickle.dumps(frostleaf.nn.Dropout(0.25), 0).decode('latin-1'))")
    assert run(f"import pickle\nprint(type(pickle.loads({layer.encode('latin-1')!r})).__name__)") == "Dropout\n"


@pytest.mark.parametrize("package", [fl, fl.nn, fl.optim, fl.io])
def test_another_name_is_an_error_as_in_every_module(package):
    with pytest.raises(AttributeError) as caught:
        package.Linaer  # noqa: B018
    assert str(caught.value) == f"module {package.__name__!r} has no attribute 'Linaer'"
    assert (caught.value.name, caught.value.obj) == ("Linaer", package)


def test_an_error_in_a_file_is_not_one_about_the_name():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'frostleaf\.nn\.gone'"):
        lazily("frostleaf.nn", {"gone": "Gone"})("Gone")


@pytest.mark.parametrize(
    ("package", "name", "advice"),
    [
        (fl, "filter_jit", "fl.jit(fn)"),
        (fl, "tree_at", "model.at(where).set(value)"),
        (fl, "optimizers", "fl.optim"),
        (fl.nn, "Module", "fl.Module"),
        (fl.nn, "value_and_grad", "fl.value_and_grad(fn)(model, ...)"),
        (fl.optim, "MultiSteps", "fl.optim.accumulate(optimizer, n)"),
        (fl.distributed, "pmean", "fl.distributed.average_gradients(tree)"),
        (fl.distributed, "get_rank", "fl.distributed.init().rank()"),
    ],
)
def test_a_name_of_another_library_is_told_ours(package, name, advice):
    assert not hasattr(package, name)
    with pytest.raises(AttributeError) as caught:
        getattr(package, name)
    assert str(caught.value) == f"module {package.__name__!r} has no attribute {name!r}. Write {advice}"


@pytest.mark.parametrize("package", [fl, fl.nn, fl.optim])
def test_what_is_told_in_place_of_other_names_is_there(package):
    table = inspect.getclosurevars(package.__getattr__).nonlocals["instead"]
    assert not table.keys() & {*package.__all__}
    for advice in table.values():
        for name in re.findall(r"fl\.([\w.]+)", advice):
            assert callable(operator.attrgetter(name)(fl)) or name == "optim"
