"""Modules of ``mlx.nn`` as frozen trees, and back."""
