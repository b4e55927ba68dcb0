from .attention import MASK, MEMORY, X
from .case import case, in_eval_mode

MEMORY_MASK = MASK[:, :3]


def twice(src, mask):
    return src * 2


def with_memory(tgt, memory, tgt_mask, memory_mask):
    return tgt + memory


CASES = {
    "encoder layer": case(lambda nn: nn.TransformerEncoderLayer(8, 2), X, None),
    "encoder layer, norm last": case(lambda nn: nn.TransformerEncoderLayer(8, 2, norm_first=False), X, (4, 4)),
    "encoder layer, dropout": case(lambda nn: nn.TransformerEncoderLayer(8, 2, 6, 0.4), X, MASK),
    "encoder layer, norm last, dropout": case(lambda nn: nn.TransformerEncoderLayer(8, 2, 6, 0.4, nn.gelu, False), X, None),
    "encoder layer, eval": case(lambda nn: in_eval_mode(nn.TransformerEncoderLayer(8, 2, dropout=0.4)), X, "causal"),
    "encoder layer, module": case(lambda nn: nn.TransformerEncoderLayer(8, 2, 6, activation=nn.Linear(6, 6)), X, None),
    "decoder layer": case(lambda nn: nn.TransformerDecoderLayer(8, 2), X, MEMORY, None, None),
    "decoder layer, norm last": case(
        lambda nn: nn.TransformerDecoderLayer(8, 2, norm_first=False), X, MEMORY, (4, 4), MEMORY_MASK
    ),
    "decoder layer, dropout": case(lambda nn: nn.TransformerDecoderLayer(8, 2, 6, 0.4), X, MEMORY, "causal", (4, 3)),
    "decoder layer, norm last, dropout": case(
        lambda nn: nn.TransformerDecoderLayer(8, 2, 6, 0.4, nn.tanh, False), X, MEMORY, MASK, None
    ),
    "decoder layer, eval": case(lambda nn: in_eval_mode(nn.TransformerDecoderLayer(8, 2, dropout=0.4)), X, MEMORY, MASK, None),
    "decoder layer, module": case(
        lambda nn: nn.TransformerDecoderLayer(8, 2, 6, activation=nn.Linear(6, 6)), X, MEMORY, None, None
    ),
    "encoder": case(lambda nn: nn.TransformerEncoder(1, 8, 2), X, None),
    "encoder, everything": case(lambda nn: nn.TransformerEncoder(2, 8, 4, 6, 0.3, nn.gelu, False), X, (4, 4)),
    "encoder, checkpoint": case(lambda nn: nn.TransformerEncoder(2, 8, 2, checkpoint=True), X, (4, 4)),
    "encoder, checkpoint, norm last": case(
        lambda nn: nn.TransformerEncoder(2, 8, 2, 6, norm_first=False, checkpoint=True), X, None
    ),
    "encoder, no layers": case(lambda nn: nn.TransformerEncoder(0, 8, 2), X, None),
    "decoder": case(lambda nn: nn.TransformerDecoder(1, 8, 2), X, MEMORY, None, None),
    "decoder, everything": case(
        lambda nn: nn.TransformerDecoder(2, 8, 4, 6, 0.3, nn.gelu, False), X, MEMORY, "causal", MEMORY_MASK
    ),
    "decoder, checkpoint": case(lambda nn: nn.TransformerDecoder(2, 8, 2, checkpoint=True), X, MEMORY, (4, 4), None),
    "decoder, checkpoint, norm last": case(
        lambda nn: nn.TransformerDecoder(2, 8, 2, 6, 0.0, nn.gelu, False, True), X, MEMORY, "causal", MEMORY_MASK
    ),
    "transformer": case(lambda nn: nn.Transformer(8, 2, 1, 1), MEMORY, X, None, None, None),
    "transformer, everything": case(
        lambda nn: nn.Transformer(8, 4, 1, 2, 6, 0.3, nn.gelu, None, None, False), X, MEMORY, MASK, (3, 3), (3, 4)
    ),
    "transformer, checkpoint": case(
        lambda nn: nn.Transformer(8, 2, 2, 1, 6, checkpoint=True), X, MEMORY, MASK, "causal", (3, 4)
    ),
    "transformer, eval": case(
        lambda nn: in_eval_mode(nn.Transformer(8, 2, 1, 1, 6, 0.3)), MEMORY, X, None, "causal", MEMORY_MASK
    ),
    "transformer, custom encoder": case(
        lambda nn: nn.Transformer(8, 2, 1, 1, 6, custom_encoder=nn.TransformerEncoderLayer(8, 4)), MEMORY, X, None, None, None
    ),
    "transformer, custom decoder": case(
        lambda nn: nn.Transformer(8, 2, 1, custom_decoder=nn.MultiHeadAttention(8, 4)), X, X, None, X, None
    ),
    "transformer, functions": case(
        lambda nn: nn.Transformer(custom_encoder=twice, custom_decoder=with_memory), X, X, None, None, None
    ),
}
