"""Contexts in fewer vectors: an encoder whose vectors stand in a frozen decoder's input where token embeddings would."""
