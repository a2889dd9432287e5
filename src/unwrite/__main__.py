"""python -m unwrite"""

from .cli import main

main()
