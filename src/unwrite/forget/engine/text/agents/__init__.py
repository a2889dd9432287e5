"""Agents around a chat model: how they are asked, what they must answer, and the chain that they form."""
