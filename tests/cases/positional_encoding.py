import mlx.core as mx

from .case import case

QUERIES, SCORES = (2, 3, 5, 8), (2, 4, 3, 5)

CASES = {
    "rope": case(lambda nn: nn.RoPE(8), QUERIES),
    "rope, offset": case(lambda nn: nn.RoPE(8, scale=0.5), QUERIES, 7),
    "rope, offsets": case(lambda nn: nn.RoPE(8, base=100.0), QUERIES, mx.array([0, 9])),
    "rope, traditional": case(lambda nn: nn.RoPE(4, traditional=True), QUERIES, mx.array(3)),
    "rope, without heads": case(lambda nn: nn.RoPE(6, True, 500, 2.0), (2, 5, 6)),
    "sinusoidal": case(lambda nn: nn.SinusoidalPositionalEncoding(8), (2, 5)),
    "sinusoidal, integers": case(lambda nn: nn.SinusoidalPositionalEncoding(6), mx.arange(300, 305)),
    "sinusoidal, one pair": case(lambda nn: nn.SinusoidalPositionalEncoding(2, cos_first=True), (5,)),
    "sinusoidal, everything": case(lambda nn: nn.SinusoidalPositionalEncoding(10, 0.01, 20, 1, True, True), (3, 2, 2)),
    "sinusoidal, one position": case(lambda nn: nn.SinusoidalPositionalEncoding(8, full_turns=True, scale=0.3), ()),
    "alibi": case(lambda nn: nn.ALiBi(), SCORES),
    "alibi, offset": case(lambda nn: nn.ALiBi(), (2, 8, 1, 5), 4),
    "alibi, mask": case(lambda nn: nn.ALiBi(), (2, 6, 3, 5), 1, (3, 5)),
    "alibi, one head": case(lambda nn: nn.ALiBi(), (1, 1, 3, 3), 0, mx.array(-1.0)),
}
