"""What tests of every family build with: tiny models, and packages that are installed by hand."""
