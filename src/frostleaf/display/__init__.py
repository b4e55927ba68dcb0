"""How trees look: in text, in notebooks, in Treescope."""
