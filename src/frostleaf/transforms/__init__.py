"""Functions of functions: jit, gradients, random numbers, state."""
