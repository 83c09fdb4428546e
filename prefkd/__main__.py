"""`python -m prefkd`: the command line without an installed script."""

import sys

from prefkd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
