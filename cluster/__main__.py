"""`python -m cluster` is `cardialign`."""

import sys

from cluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
