"""python -m unwrite.cli"""

from . import main

main()
