"""What is measured on image models: metrics, their context, pictures, shadow models."""
