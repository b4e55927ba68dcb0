"""Transformations of functions, and what they depend on: random numbers and recorded state."""
