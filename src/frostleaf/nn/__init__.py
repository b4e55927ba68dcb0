"""The layers of ``mlx.nn`` as frozen modules; its activation functions, losses and initializers are MLX's own."""

from typing import TYPE_CHECKING

from mlx.nn import init, losses
from mlx.nn.layers.activations import (
    celu,
    elu,
    gelu,
    gelu_approx,
    gelu_fast_approx,
    glu,
    hard_shrink,
    hard_tanh,
    hardswish,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    prelu,
    relu,
    relu2,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softmin,
    softplus,
    softshrink,
    softsign,
    step,
    tanh,
)

from ..core.lazy import lazily

if TYPE_CHECKING:
    from .activations import (
        CELU,
        ELU,
        GELU,
        GLU,
        SELU,
        HardShrink,
        Hardswish,
        HardTanh,
        LeakyReLU,
        LogSigmoid,
        LogSoftmax,
        Mish,
        PReLU,
        ReLU,
        ReLU2,
        ReLU6,
        Sigmoid,
        SiLU,
        Softmax,
        Softmin,
        Softplus,
        Softshrink,
        Softsign,
        Step,
        Tanh,
    )
    from .attention import MultiHeadAttention
    from .cache import KVCache, RotatingKVCache
    from .cache_growing import GrowingCache
    from .cache_lists import ArraysCache, CacheList
    from .cache_making import make_cache
    from .checks import MisfitError
    from .containers import Sequential
    from .convolution import Conv1d, Conv2d, Conv3d
    from .convolution_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
    from .distributed import (
        AllToShardedLinear,
        QuantizedAllToShardedLinear,
        QuantizedShardedToAllLinear,
        ShardedToAllLinear,
    )
    from .dora import DoRAEmbedding, DoRALinear
    from .dropout import Dropout, Dropout2d, Dropout3d
    from .embedding import Embedding
    from .fully_sharded import FullyShardedModule
    from .linear import Bilinear, Identity, Linear
    from .lora import LoRAEmbedding, LoRALinear
    from .normalization import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
    from .pooling import AvgPool1d, AvgPool2d, AvgPool3d, MaxPool1d, MaxPool2d, MaxPool3d
    from .positional_encoding import ALiBi, RoPE, SinusoidalPositionalEncoding
    from .quantized import QQLinear, QuantizedEmbedding, QuantizedLinear
    from .recurrent import GRU, LSTM, RNN
    from .transformer import (
        Transformer,
        TransformerDecoder,
        TransformerDecoderLayer,
        TransformerEncoder,
        TransformerEncoderLayer,
    )
    from .upsample import Upsample
else:
    __getattr__ = lazily(
        __name__,
        {
            "activations": (
                "CELU ELU GELU GLU SELU HardShrink Hardswish HardTanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU ReLU "
                "ReLU2 ReLU6 Sigmoid SiLU Softmax Softmin Softplus Softshrink Softsign Step Tanh"
            ),
            "attention": "MultiHeadAttention",
            "cache": "KVCache RotatingKVCache",
            "cache_growing": "GrowingCache",
            "cache_lists": "ArraysCache CacheList",
            "cache_making": "make_cache",
            "checks": "MisfitError",
            "containers": "Sequential",
            "convolution": "Conv1d Conv2d Conv3d",
            "convolution_transpose": "ConvTranspose1d ConvTranspose2d ConvTranspose3d",
            "distributed": ("AllToShardedLinear QuantizedAllToShardedLinear QuantizedShardedToAllLinear ShardedToAllLinear"),
            "dora": "DoRAEmbedding DoRALinear",
            "dropout": "Dropout Dropout2d Dropout3d",
            "embedding": "Embedding",
            "fully_sharded": "FullyShardedModule",
            "linear": "Bilinear Identity Linear",
            "lora": "LoRAEmbedding LoRALinear",
            "normalization": "BatchNorm GroupNorm InstanceNorm LayerNorm RMSNorm",
            "pooling": "AvgPool1d AvgPool2d AvgPool3d MaxPool1d MaxPool2d MaxPool3d",
            "positional_encoding": "ALiBi RoPE SinusoidalPositionalEncoding",
            "quantized": "QQLinear QuantizedEmbedding QuantizedLinear",
            "recurrent": "GRU LSTM RNN",
            "transformer": "Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer",
            "upsample": "Upsample",
        },
        instead={
            "Module": "fl.Module",
            "checkpoint": "fl.checkpoint(fn)",
            "quantize": "fl.quantize(model, ...)",
            "value_and_grad": "fl.value_and_grad(fn)(model, ...)",
        },
    )

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "ALiBi",
    "AllToShardedLinear",
    "ArraysCache",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm",
    "Bilinear",
    "CacheList",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DoRAEmbedding",
    "DoRALinear",
    "Dropout",
    "Dropout2d",
    "Dropout3d",
    "Embedding",
    "FullyShardedModule",
    "GroupNorm",
    "GrowingCache",
    "HardShrink",
    "HardTanh",
    "Hardswish",
    "Identity",
    "InstanceNorm",
    "KVCache",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LoRAEmbedding",
    "LoRALinear",
    "LogSigmoid",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MisfitError",
    "Mish",
    "MultiHeadAttention",
    "PReLU",
    "QQLinear",
    "QuantizedAllToShardedLinear",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedShardedToAllLinear",
    "RMSNorm",
    "ReLU",
    "ReLU2",
    "ReLU6",
    "RoPE",
    "RotatingKVCache",
    "Sequential",
    "ShardedToAllLinear",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositionalEncoding",
    "Softmax",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Step",
    "Tanh",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "Upsample",
    "celu",
    "elu",
    "gelu",
    "gelu_approx",
    "gelu_fast_approx",
    "glu",
    "hard_shrink",
    "hard_tanh",
    "hardswish",
    "init",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "losses",
    "make_cache",
    "mish",
    "prelu",
    "relu",
    "relu2",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softmin",
    "softplus",
    "softshrink",
    "softsign",
    "step",
    "tanh",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)
