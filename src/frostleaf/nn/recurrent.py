"""Layers that read a sequence step by step, with a state that goes from each step to the next."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
from mlx.nn.layers.activations import tanh

from ..core.fields import static
from ..core.words import describe
from ..module import Module
from .checks import misfit, size
from .dtypes import layer_dtype
from .initial import split, uniform
from .products import addmm


class RNN(Module):
    r"""Read a sequence step by step, and mix each input with the state of the step before it.

    .. math:: h_t = \tanh(W_{xh}\, x_t + W_{hh}\, h_{t-1} + b)

    The parameters start uniform in :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{hidden\_size}}`.
    Elman, `Finding structure in time <https://doi.org/10.1207/s15516709cog1402_1>`_.

    Args:
        input_size: The length of the input's last axis, ``D``.
        hidden_size: The length of a state, ``H``.
        bias: Whether to add :math:`b`. Default: ``True``.
        nonlinearity: A function or a module that replaces :math:`\tanh`. Default: ``None``, which is :math:`\tanh`.
        dtype: The dtype of the parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``Wxh`` is ``[H, D]``, ``Whh`` ``[H, H]`` and ``bias`` ``[H]``, or ``None``;
        input ``[..., L, D]``, first state ``[..., H]``, output ``[..., L, H]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int or ``nonlinearity`` can't be called; in a call, if the input or the
            state is not of a shape above, or the sequence is empty.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.RNN(3, 4)
    >>> layer
    RNN(nonlinearity=tanh, Wxh=f32[4,3], Whh=f32[4,4], bias=f32[4], hidden_size=4)
    >>> states = layer(mx.ones((2, 5, 3)))
    >>> states.shape, layer(mx.ones((2, 1, 3)), states[:, -1]).shape
    ((2, 5, 4), (2, 1, 4))
    """

    nonlinearity: Callable[[mx.array], mx.array]
    Wxh: mx.array
    Whh: mx.array
    bias: mx.array | None
    hidden_size: int = static()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Callable[[mx.array], mx.array] | None = None,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        if nonlinearity is not None and not callable(nonlinearity):
            raise ValueError(
                f"nonlinearity is a function or a module, or None for tanh, and was given as {describe(nonlinearity)}"
            )
        dtype = layer_dtype(dtype)
        input_size, hidden_size = size(self, "input_size", input_size), size(self, "hidden_size", hidden_size)
        input_key, hidden_key, bias_key = split(key, 3)
        scale = 1 / math.sqrt(hidden_size)
        self.nonlinearity = tanh if nonlinearity is None else nonlinearity
        self.hidden_size = hidden_size
        self.Wxh = uniform(scale, (hidden_size, input_size), dtype, input_key)
        self.Whh = uniform(scale, (hidden_size, hidden_size), dtype, hidden_key)
        self.bias = uniform(scale, (hidden_size,), dtype, bias_key) if bias else None

    def __call__(self, x: mx.array, hidden: mx.array | None = None) -> mx.array:
        """Return the state after each step.

        Args:
            x: The sequence, or a batch of them.
            hidden: The state before the first step. Default: zeros.
        """
        _check_input(self, self.Wxh, x)
        _check_state(self, "hidden", hidden, x, wide=True)
        x = _projected(x, self.Wxh, self.bias)
        states = []
        for step in range(x.shape[-2]):
            here = x[..., step, :]
            hidden = self.nonlinearity(here if hidden is None else addmm(here, hidden, self.Whh.T))
            states.append(hidden)
        return mx.stack(states, axis=-2)


class GRU(Module):
    r"""Read a sequence step by step, with gates that let the state change or stay.

    .. math::

        r_t &= \sigma(W_{xr}\, x_t + W_{hr}\, h_{t-1} + b_r) \\
        z_t &= \sigma(W_{xz}\, x_t + W_{hz}\, h_{t-1} + b_z) \\
        n_t &= \tanh(W_{xn}\, x_t + b_n + r_t \odot (W_{hn}\, h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    The parameters start uniform in :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{hidden\_size}}`.
    Cho et al., `Learning phrase representations using RNN encoder-decoder for statistical machine translation
    <https://arxiv.org/abs/1406.1078>`_.

    Args:
        input_size: The length of the input's last axis, ``D``.
        hidden_size: The length of a state, ``H``.
        bias: Whether to add the :math:`b`. Default: ``True``.
        dtype: The dtype of the parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``Wx`` is ``[3 * H, D]``, ``Wh`` ``[3 * H, H]`` and ``b`` ``[3 * H]``, each with the rows of :math:`r`, :math:`z` and
        :math:`n` in this order, ``bhn`` ``[H]``; ``b`` and ``bhn`` may be ``None``;
        input ``[..., L, D]``, first state ``[..., H]``, output ``[..., L, H]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int; in a call, if the input or the state is not of a shape above, or the
            sequence is empty.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.GRU(3, 4)
    >>> layer
    GRU(Wx=f32[12,3], Wh=f32[12,4], b=f32[12], bhn=f32[4], hidden_size=4)
    >>> states = layer(mx.ones((2, 5, 3)))
    >>> states.shape, layer(mx.ones((2, 1, 3)), states[:, -1]).shape
    ((2, 5, 4), (2, 1, 4))
    """

    Wx: mx.array
    Wh: mx.array
    b: mx.array | None
    bhn: mx.array | None
    hidden_size: int = static()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        input_size, hidden_size = size(self, "input_size", input_size), size(self, "hidden_size", hidden_size)
        input_key, hidden_key, bias_key, inner_key = split(key, 4)
        scale = 1 / math.sqrt(hidden_size)
        self.hidden_size = hidden_size
        self.Wx = uniform(scale, (3 * hidden_size, input_size), dtype, input_key)
        self.Wh = uniform(scale, (3 * hidden_size, hidden_size), dtype, hidden_key)
        self.b = uniform(scale, (3 * hidden_size,), dtype, bias_key) if bias else None
        self.bhn = uniform(scale, (hidden_size,), dtype, inner_key) if bias else None

    def __call__(self, x: mx.array, hidden: mx.array | None = None) -> mx.array:
        """Return the state after each step.

        Args:
            x: The sequence, or a batch of them.
            hidden: The state before the first step. Default: zeros.
        """
        _check_input(self, self.Wx, x)
        _check_state(self, "hidden", hidden, x)
        x = _projected(x, self.Wx, self.b)
        size = self.hidden_size
        gates, candidates = x[..., :-size], x[..., -size:]
        states = []
        for step in range(x.shape[-2]):
            gate, candidate, recurrent = gates[..., step, :], candidates[..., step, :], self.bhn
            if hidden is not None:
                projected = hidden @ self.Wh.T
                gate = gate + projected[..., :-size]
                recurrent = projected[..., -size:] if recurrent is None else projected[..., -size:] + recurrent
            r, z = mx.split(mx.sigmoid(gate), 2, axis=-1)
            n = mx.tanh(candidate if recurrent is None else candidate + r * recurrent)
            hidden = (1 - z) * n if hidden is None else (1 - z) * n + z * hidden
            states.append(hidden)
        return mx.stack(states, axis=-2)


class LSTM(Module):
    r"""Read a sequence step by step, with a cell beside the state, and gates that let it forget, take in and give out.

    .. math::

        i_t &= \sigma(W_{xi}\, x_t + W_{hi}\, h_{t-1} + b_i) \\
        f_t &= \sigma(W_{xf}\, x_t + W_{hf}\, h_{t-1} + b_f) \\
        g_t &= \tanh(W_{xg}\, x_t + W_{hg}\, h_{t-1} + b_g) \\
        o_t &= \sigma(W_{xo}\, x_t + W_{ho}\, h_{t-1} + b_o) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    The parameters start uniform in :math:`[-k, k)`, where :math:`k = 1 / \sqrt{\mathtt{hidden\_size}}`.
    Hochreiter and Schmidhuber, `Long short-term memory <https://doi.org/10.1162/neco.1997.9.8.1735>`_; the gate :math:`f`
    is due to Gers et al., `Learning to forget <https://doi.org/10.1162/089976600300015015>`_.

    Args:
        input_size: The length of the input's last axis, ``D``.
        hidden_size: The length of a state and of a cell, ``H``.
        bias: Whether to add the :math:`b`. Default: ``True``.
        dtype: The dtype of the parameters. Default: that of :func:`frostleaf.default_dtype`.
        key: Draws the initial values. Default: ``mx.random``'s own state.

    Shapes:
        ``Wx`` is ``[4 * H, D]``, ``Wh`` ``[4 * H, H]`` and ``bias`` ``[4 * H]``, or ``None``, each with the rows of :math:`i`,
        :math:`f`, :math:`g` and :math:`o` in this order;
        input ``[..., L, D]``, first state and cell ``[..., H]``, each of the two outputs ``[..., L, H]``.

    Raises:
        TypeError: If ``dtype`` is not a floating-point one, or ``key`` is no key.
        ValueError: If a size is not a positive int; in a call, if the input, the state or the cell is not of a shape above,
            or the sequence is empty.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.LSTM(3, 4)
    >>> layer
    LSTM(Wx=f32[16,3], Wh=f32[16,4], bias=f32[16], hidden_size=4)
    >>> states, cells = layer(mx.ones((2, 5, 3)))
    >>> states, cells = layer(mx.ones((2, 1, 3)), states[:, -1], cells[:, -1])
    >>> states.shape, cells.shape
    ((2, 1, 4), (2, 1, 4))
    """

    Wx: mx.array
    Wh: mx.array
    bias: mx.array | None
    hidden_size: int = static()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: mx.Dtype | None = None,
        key: mx.array | None = None,
    ) -> None:
        dtype = layer_dtype(dtype)
        input_size, hidden_size = size(self, "input_size", input_size), size(self, "hidden_size", hidden_size)
        input_key, hidden_key, bias_key = split(key, 3)
        scale = 1 / math.sqrt(hidden_size)
        self.hidden_size = hidden_size
        self.Wx = uniform(scale, (4 * hidden_size, input_size), dtype, input_key)
        self.Wh = uniform(scale, (4 * hidden_size, hidden_size), dtype, hidden_key)
        self.bias = uniform(scale, (4 * hidden_size,), dtype, bias_key) if bias else None

    def __call__(self, x: mx.array, hidden: mx.array | None = None, cell: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """Return the state and the cell after each step.

        Args:
            x: The sequence, or a batch of them.
            hidden: The state before the first step. Default: zeros.
            cell: The cell before the first step. Default: zeros.
        """
        _check_input(self, self.Wx, x)
        _check_state(self, "hidden", hidden, x, wide=True)
        _check_state(self, "cell", cell, x)
        x = _projected(x, self.Wx, self.bias)
        states, cells = [], []
        for step in range(x.shape[-2]):
            here = x[..., step, :]
            gates = here if hidden is None else addmm(here, hidden, self.Wh.T)
            i, f, g, o = mx.split(gates, 4, axis=-1)
            new = mx.sigmoid(i) * mx.tanh(g)
            cell = new if cell is None else mx.sigmoid(f) * cell + new
            hidden = mx.sigmoid(o) * mx.tanh(cell)
            states.append(hidden)
            cells.append(cell)
        return mx.stack(states, axis=-2), mx.stack(cells, axis=-2)


def _projected(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    return x @ weight.T if bias is None else addmm(bias, x, weight.T)


def _check_input(layer: Module, weight: mx.array, x: mx.array) -> None:
    if x.ndim < 2 or x.shape[-1] != weight.shape[1] or x.shape[-2] == 0:
        raise misfit(layer, f"[..., L, {weight.shape[1]}] with L > 0", x)


def _check_state(layer: RNN | GRU | LSTM, name: str, state: mx.array | None, x: mx.array, wide: bool = False) -> None:
    """Check that the state's last axis is of length ``hidden_size``, and that its other axes broadcast with the batch.

    With ``wide`` these must be the axes that the two broadcast to: MLX's ``addmm``, which adds the input to the state's
    projection, does not broadcast the projection.
    """
    batch, size = x.shape[:-2], layer.hidden_size
    if state is None or state.shape == (*batch, size):
        return
    try:
        both = mx.broadcast_shapes(state.shape[:-1], batch)
    except ValueError:
        both = None
    if state.shape[-1:] != (size,) or both is None or (wide and both != state.shape[:-1]):
        shape = f"[{','.join(map(str, (*batch, size)))}]"
        takes = f"{type(layer).__name__} takes a {name} state of shape {shape} with an input {describe(x)}"
        raise ValueError(f"{takes}, and was given {describe(state)}. The layer is {layer!r}")
