"""Train a small network on handwritten digits, then make copies of it that exist side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx

import frostleaf as fl

GOOD_ACCURACY = 0.95
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class DigitNet(fl.Module):
    """Classify digits by two convolutions with batch norm, dropout, and a linear head."""

    backbone: fl.nn.Sequential
    dropout: fl.nn.Dropout
    head: fl.nn.Linear

    def __init__(self, *, dtype: mx.Dtype | None = None) -> None:
        self.backbone = fl.nn.Sequential(
            fl.nn.Conv2d(1, 16, 3, padding=1, dtype=dtype), fl.nn.BatchNorm(16, dtype=dtype), fl.nn.relu, fl.nn.MaxPool2d(2),
            fl.nn.Conv2d(16, 32, 3, padding=1, dtype=dtype), fl.nn.BatchNorm(32, dtype=dtype), fl.nn.relu, fl.nn.MaxPool2d(2),
        )  # fmt: skip
        self.dropout = fl.nn.Dropout(0.25)
        self.head = fl.nn.Linear(2 * 2 * 32, 10, dtype=dtype)

    def __call__(self, images: mx.array) -> mx.array:
        """Return the logits, [batch, 10], of images, [batch, 8, 8, 1]."""
        features = self.backbone(images).reshape(images.shape[0], -1)
        return self.head(self.dropout(features))


class Digits(NamedTuple):
    """Images, [count, 8, 8, 1] between 0 and 1, and their classes, [count]."""

    images: mx.array
    labels: mx.array


def lacks_extras() -> bool:
    """Return whether a package is missing that the demonstration needs, and say which those are."""
    try:
        import sklearn.datasets  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError:
        print("the demonstration needs scikit-learn (for its digits) and tqdm: pip install 'frostleaf[demo]'", file=sys.stderr)
        return True
    return False


def load_digits(seed: int) -> tuple[Digits, Digits]:
    """Return scikit-learn's 1,797 handwritten digits, shuffled: four fifths to train with and one fifth to test."""
    from sklearn import datasets

    data = datasets.load_digits()
    images, labels = mx.array(data.images[..., None] / 16, mx.float32), mx.array(data.target, mx.int32)
    order = mx.random.permutation(len(data.target), key=mx.random.key(seed))
    split = len(data.target) * 4 // 5
    return tuple(Digits(images[chosen], labels[chosen]) for chosen in (order[:split], order[split:]))  # type: ignore[return-value]


def batches(data: Digits, size: int) -> Iterator[Digits]:
    """Yield the data once in random order, in batches of ``size``, without the remainder."""
    order = mx.random.permutation(data.labels.size)
    for start in range(0, data.labels.size - size + 1, size):
        chosen = order[start : start + size]
        yield Digits(data.images[chosen], data.labels[chosen])


def train_step(optimizer: fl.optim.Optimizer) -> Callable[..., Any]:
    """Return a compiled function from model, optimizer state and batch to the next model and state, and the loss."""

    @fl.jit
    def step(model: DigitNet, state: fl.optim.OptimizerState, batch: Digits) -> tuple[Any, ...]:
        def loss_fn(model: DigitNet) -> tuple[mx.array, DigitNet]:
            images = batch.images.astype(model.head.weight.dtype)
            logits, model = fl.stateful(model, images)
            return fl.nn.losses.cross_entropy(logits, batch.labels, reduction="mean"), model

        (loss, model), grads = fl.value_and_grad(loss_fn, has_aux=True)(model)
        return *optimizer.update(model, grads, state), loss

    return step


def train(model: DigitNet, data: Digits, epochs: int, learning_rate: float, title: str) -> DigitNet:
    """Train a model for some epochs, and show a progress bar; a line an epoch where there is no terminal."""
    from tqdm import tqdm

    half = model.head.weight.dtype != mx.float32
    optimizer = fl.optim.AdamW(learning_rate, eps=1e-4 if half else 1e-8)
    step, state = train_step(optimizer), optimizer.init(model)
    for epoch in range(1, epochs + 1):
        name = f"{title}, epoch {epoch}/{epochs}"
        with tqdm(list(batches(data, 64)), name, unit="batch", disable=not sys.stderr.isatty()) as bar:
            for batch in bar:
                model, state, loss = step(model, state, batch)
                fl.eval(model, state)
                bar.set_postfix(loss=f"{loss.item():.4f}")
        if not sys.stderr.isatty():
            print(f"{name}: loss={loss.item():.4f}", file=sys.stderr, flush=True)
    return model


@fl.jit
def correct(model: DigitNet, data: Digits) -> mx.array:
    """Count the digits that the model recognises."""
    logits = model(data.images.astype(model.head.weight.dtype))
    return (logits.argmax(-1) == data.labels).sum()


def accuracy(model: DigitNet, data: Digits) -> float:
    """Return the share of the digits that the model recognises in evaluation mode."""
    return float(correct(model.eval(), data).item()) / data.labels.size  # type: ignore[arg-type]


def shared(model: Any, original: Any) -> str:
    """Count the model's arrays that are objects of the original too."""
    known = {id(array) for array in fl.tree.leaves(original)}
    leaves = fl.tree.leaves(model)
    return f"{sum(id(array) in known for array in leaves)} of {len(leaves)}"


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration, and return the exit status: 1 if the model recognises too few of the test digits."""
    parser = argparse.ArgumentParser(prog="python -m frostleaf", description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="passes over the training digits (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed prints the same accuracies (default: 0)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model that is trained (default: float32)")
    options = parser.parse_args(argv)
    if lacks_extras():
        return 2

    mx.random.seed(options.seed)
    training, test = load_digits(options.seed)
    model = DigitNet(dtype=DTYPES[options.dtype])
    print(f"{model}\n{fl.tree.size(model):,} numbers; {training.labels.size} digits to train with, {test.labels.size} to test")
    print("On a CPU the first step takes up to a minute, while MLX compiles its kernels.\n", flush=True)
    model = train(model, training, options.epochs, 2e-3, "training")

    fresh = model.replace(head=fl.nn.Linear(2 * 2 * 32, 10, dtype=DTYPES[options.dtype]))
    # In evaluation mode the backbone's statistics stay as they are, and so does everything else in it.
    frozen = fresh.with_frozen("backbone").at("backbone").apply(lambda backbone: backbone.eval())
    tuned = train(frozen, training, 1, 1e-2, "fresh head")

    other = "bfloat16" if options.dtype != "bfloat16" else "float32"
    copies = {
        f"trained in {options.dtype}": model,
        **{f"cast to {name}": model.astype(dtype) for name, dtype in DTYPES.items() if name != options.dtype},
        f"cast to {other}, but for the head": model.at("backbone").astype(DTYPES[other]),
        "frozen backbone, fresh head": fresh,
        "the same, tuned for an epoch": tuned,
    }
    print(f"\n{'one model and its copies':34}{'test accuracy':>15}{'bytes':>10}{'arrays shared':>16}")
    for name, each in copies.items():
        print(f"{name:34}{accuracy(each, test):>15.2%}{fl.tree.nbytes(each):>10,}{shared(each, model):>16}")

    reached = accuracy(model, test)
    if reached < GOOD_ACCURACY:
        print(f"\nonly {reached:.2%} of the test digits are recognised; {GOOD_ACCURACY:.0%} were expected", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
