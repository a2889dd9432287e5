"""What the documentation shows of the catalogue and the results: tables, pictures, and a page a system."""
