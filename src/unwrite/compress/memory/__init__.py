"""A memory beside a frozen language model: a datastore of its states, neighbours in it, and a network that imitates them."""
