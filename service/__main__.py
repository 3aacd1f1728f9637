"""`python -m service` is `temperd`: unlike `-m service.cli` it loads the command line once and not a second time."""

import sys

from service.cli import main

if __name__ == "__main__":
    sys.exit(main())
