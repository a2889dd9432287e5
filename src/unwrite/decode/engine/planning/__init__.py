"""How much to draft: what forwards cost, what was accepted, and the nodes that pay."""
