"""Plan for deletion before training: private base models, their accounts, and what is made of them."""
