"""What is measured on language models, metric by metric."""
