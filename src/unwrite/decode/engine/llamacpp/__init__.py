"""llama.cpp as a target: a GGUF file scores draft trees."""
