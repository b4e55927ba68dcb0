"""Whether jitted functions run as plain Python."""

from contextvars import ContextVar

# Looked at in each call of a jitted function. Set by disable_jit, and by stateful: what layers record is a side effect, which a
# replayed trace would not have.
plain: ContextVar[bool] = ContextVar("plain", default=False)
