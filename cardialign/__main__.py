"""`python -m cardialign` is `cardialign`."""

import sys

from cardialign.cluster.main import main

if __name__ == "__main__":
    sys.exit(main())
