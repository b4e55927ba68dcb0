"""Save models to files and load them."""
