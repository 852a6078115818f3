"""`python -m tunewright.service.inference`: see process.py."""

from tunewright.service.inference.process import main

main()
