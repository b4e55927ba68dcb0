"""The layers of ``mlx.nn`` as frozen modules; its activation functions, losses and initializers are MLX's own."""

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

from .containers import Sequential
from .convolution import Conv2d
from .dropout import Dropout
from .embedding import Embedding
from .linear import Identity, Linear
from .normalization import BatchNorm, LayerNorm, RMSNorm
from .pooling import MaxPool2d

__all__ = [
    "BatchNorm", "Conv2d", "Dropout", "Embedding", "Identity", "LayerNorm", "Linear", "MaxPool2d", "RMSNorm",
    "Sequential", "celu", "elu", "gelu", "gelu_approx", "gelu_fast_approx", "glu", "hard_shrink", "hard_tanh",
    "hardswish", "init", "leaky_relu", "log_sigmoid", "log_softmax", "losses", "mish", "prelu", "relu", "relu2",
    "relu6", "selu", "sigmoid", "silu", "softmax", "softmin", "softplus", "softshrink", "softsign", "step",
    "tanh",
]  # fmt: skip
