"""Sets of images: where they come from, how they are checked, and which rows are to be forgotten."""
