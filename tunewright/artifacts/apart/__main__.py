"""`python -P …/apart TARGET FOLDER WORK`: see `foreign`, which is all that this folder puts in reach."""

import sys
from pathlib import Path

from foreign import main

main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
