"""`python -m tauten`."""

from tauten.cli import main

main()
