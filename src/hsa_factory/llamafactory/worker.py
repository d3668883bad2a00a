"""What torchrun starts: one training process of several."""

import sys


if __name__ == "__main__":
    # Python puts a script's directory first, in which our `inspect` would hide Python's own.
    sys.path.pop(0)

    from hsa_factory.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
