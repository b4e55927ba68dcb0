import mlx.core as mx

from .case import case

CASES = {
    "embedding": case(lambda nn: nn.Embedding(5, 3), mx.array([[0, 4], [4, 1]])),
}
