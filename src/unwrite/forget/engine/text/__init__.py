"""How methods run on texts."""
