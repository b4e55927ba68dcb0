import mlx.core as mx

from .case import case, in_eval_mode

INDICES = mx.array([[0, 4], [4, 1]])
MODES = ["affine", "mxfp4", "nvfp4", "mxfp8"]

CASES = {
    "quantized_linear": case(lambda nn: nn.QuantizedLinear(64, 8), (2, 64)),
    "quantized_linear, one vector": case(lambda nn: nn.QuantizedLinear(64, 8), (64,)),
    "quantized_linear, no bias": case(lambda nn: nn.QuantizedLinear(128, 8, False, 128), (5, 2, 128)),
    **{
        f"quantized_linear, {bits} bits": case(lambda nn, bits=bits: nn.QuantizedLinear(64, 8, True, 32, bits), (2, 64))
        for bits in [2, 3, 5, 6, 8]
    },
    **{
        f"quantized_linear, {mode}": case(lambda nn, mode=mode: nn.QuantizedLinear(64, 8, mode=mode), (2, 64))
        for mode in MODES[1:]
    },
    **{
        f"quantized_linear, of a linear, {mode}": case(lambda nn, mode=mode: nn.Linear(64, 8).to_quantized(mode=mode), (2, 64))
        for mode in MODES
    },
    "quantized_linear, in a sequential": case(
        lambda nn: nn.Sequential(nn.Linear(64, 32), nn.relu, nn.QuantizedLinear(32, 8, mode="nvfp4")), (2, 64)
    ),
    "quantized_embedding": case(lambda nn: nn.QuantizedEmbedding(5, 64), INDICES),
    "quantized_embedding, 8 bits": case(lambda nn: nn.QuantizedEmbedding(5, 64, 32, 8), INDICES),
    **{
        f"quantized_embedding, {mode}": case(lambda nn, mode=mode: nn.QuantizedEmbedding(5, 64, mode=mode), INDICES)
        for mode in MODES[1:]
    },
    "quantized_embedding, of an embedding": case(lambda nn: nn.Embedding(5, 64).to_quantized(bits=2), INDICES),
    "qq_linear, eval": case(lambda nn: in_eval_mode(nn.QQLinear(64, 8)), (1, 64)),
    "qq_linear, mxfp8, eval": case(lambda nn: in_eval_mode(nn.QQLinear(64, 8, 32, 8, "mxfp8")), (1, 64)),
    "qq_linear": case(lambda nn: nn.QQLinear(64, 8), (2, 64)),
    "qq_linear, of a linear": case(
        lambda nn: nn.Linear(64, 8, bias=False).to_quantized(mode="mxfp8", quantize_input=True), (2, 64)
    ),
    "qq_linear, of a linear in eval mode": case(
        lambda nn: in_eval_mode(nn.Linear(64, 8, bias=False)).to_quantized(mode="nvfp4", quantize_input=True), (1, 64)
    ),
}
