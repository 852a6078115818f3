"""`python -m tunewright` is the command `tunewright`."""

from tunewright.cli import main

main()
