"""What is said of weights that are loaded, and may not be meant."""

from __future__ import annotations


class UnmatchedWeightsWarning(UserWarning):
    """:meth:`Module.load_weights` has loaded nothing, or what is none for its place, or a name in ``rename`` names nothing.

    Nothing is loaded, with ``strict=False``, if no weight has the name of a parameter, or there is none. An array is none for
    its place if the model has another shape there, which ``strict`` refuses, or another kind of numbers: integers, floats or
    complex ones. Of a mapping ``rename``, where not all was found, :func:`load` and :meth:`Checkpointer.restore` warn as well.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     model = fl.nn.Linear(1, 1).load_weights({"w": mx.ones((1, 1))}, strict=False)
    >>> caught[0].category.__name__
    'UnmatchedWeightsWarning'
    """
