"""How methods run on images."""
