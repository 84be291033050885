"""`python -m edgeclip`."""

import sys

from edgeclip.cli import main

if __name__ == "__main__":
    sys.exit(main())
