"""Models of transformers as targets: caches, packed and fused forwards, and what an architecture allows."""
