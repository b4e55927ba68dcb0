import mlx.core as mx

from .case import case

CASES = {
    "embedding": case(lambda nn: nn.Embedding(5, 3), mx.array([[0, 4], [4, 1]])),
    "embedding, one index": case(lambda nn: nn.Embedding(5, 3), 4),
    "embedding, from the end": case(lambda nn: nn.Embedding(5, 3), mx.array([-1, 2], mx.int8)),
    "embedding, three axes": case(lambda nn: nn.Embedding(5, 3), mx.array([[[0, 1]], [[4, 4]]], mx.uint32)),
}
