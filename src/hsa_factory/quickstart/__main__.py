"""`python -m hsa_factory.quickstart`, the same as `hsa-factory quickstart`."""

import sys

from ..cli import main


if __name__ == "__main__":
    sys.exit(main(["quickstart", *sys.argv[1:]]))
