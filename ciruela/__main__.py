"""``python -m ciruela``: as ``ciruela``."""

import sys

from ciruela.client.start import ciruela

if __name__ == "__main__":
    sys.exit(ciruela())
