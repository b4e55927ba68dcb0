import mlx.core as mx

from .case import case

X, MEMORY = (2, 4, 8), (2, 3, 8)
MASK = mx.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]) > 0
PADDED = MASK[:2, None, None]  # another one for each sequence of the batch

CASES = {
    "attention": case(lambda nn: nn.MultiHeadAttention(8, 2), X, MEMORY, MEMORY),
    "attention, bias": case(lambda nn: nn.MultiHeadAttention(8, 4, bias=True), X, MEMORY, MEMORY, None),
    "attention, every size": case(lambda nn: nn.MultiHeadAttention(8, 2, 3, 5, 7, 6, 9), (2, 4, 3), (2, 3, 5), (2, 3, 7)),
    "attention, values like keys": case(lambda nn: nn.MultiHeadAttention(8, 2, key_input_dims=5), X, (2, 3, 5), (2, 3, 5)),
    "attention, added mask": case(lambda nn: nn.MultiHeadAttention(8, 2), X, MEMORY, MEMORY, (4, 3)),
    "attention, mask for each head": case(lambda nn: nn.MultiHeadAttention(8, 2), X, MEMORY, MEMORY, (2, 2, 4, 3)),
    "attention, boolean mask": case(lambda nn: nn.MultiHeadAttention(8, 2), X, X, X, MASK),
    "attention, padding": case(lambda nn: nn.MultiHeadAttention(8, 2), X, X, X, PADDED),
    "attention, causal": case(lambda nn: nn.MultiHeadAttention(8, 2), X, X, X, "causal"),
    "attention, causal, from the middle": case(lambda nn: nn.MultiHeadAttention(8, 2), MEMORY, X, X, "causal"),
}
