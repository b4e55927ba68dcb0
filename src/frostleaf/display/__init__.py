"""How trees look in text."""
