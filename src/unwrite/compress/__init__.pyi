# Written by `unwrite docs` from the catalogue, for type checkers and editors.

