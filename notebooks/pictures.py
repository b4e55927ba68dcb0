"""Draw the pictures of the README: ``python notebooks/pictures.py``. The tree needs Chromium, as ``chromium`` on the path."""

import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import mlx.core as mx
from PIL import Image

import frostleaf as fl

FOLDER = Path(__file__).parent
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--force-device-scale-factor=2", "--window-size=820,400"]


class Block(fl.Module):
    attention: fl.nn.MultiHeadAttention
    norm: fl.nn.LayerNorm
    up: fl.nn.Linear
    down: fl.nn.Linear

    def __init__(self, dims):
        self.attention = fl.nn.MultiHeadAttention(dims, 4)
        self.norm = fl.nn.LayerNorm(dims)
        self.up, self.down = fl.nn.Linear(dims, 4 * dims), fl.nn.Linear(4 * dims, dims)


class Language(fl.Module):
    embedding: fl.nn.Embedding
    blocks: tuple[Block, ...]
    norm: fl.nn.LayerNorm
    head: fl.nn.Linear

    def __init__(self, words=500, dims=64, depth=6):
        self.embedding = fl.nn.Embedding(words, dims)
        self.blocks = tuple(Block(dims) for _ in range(depth))
        self.norm = fl.nn.LayerNorm(dims)
        self.head = fl.nn.Linear(dims, words, bias=False)


def draw_tree(model):
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "tree.html")
        page.write_text(f"<meta charset='utf-8'><body style='margin: 12px'>{model._repr_html_()}")
        picture = f"--screenshot={FOLDER / 'tree.png'}"
        subprocess.run(
            ["chromium", *FLAGS, f"--user-data-dir={folder}", picture, page.as_uri()], check=True, capture_output=True
        )
    Image.open(FOLDER / "tree.png").quantize(64).save(FOLDER / "tree.png", optimize=True)  # a third of the bytes


def draw_changes(model):
    copies = [model.astype(mx.float16), model.astype(mx.bfloat16), fl.quantize(model, bits=8), fl.quantize(model, bits=4)]
    figure, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
    fl.plot.changes(model, *copies, labels=["float16", "bfloat16", "8 bits", "4 bits"], where="blocks.0.**.weight", ax=ax)
    figure.savefig(FOLDER / "changes.png", dpi=120)


mx.random.seed(0)
language = Language()
tied = language.tie({"head.weight": "embedding.weight"})
draw_tree(tied.freeze().at("blocks.*.attention.**").unfreeze().at("blocks.5").astype(mx.bfloat16))
draw_changes(language)
