"""What torchrun starts: one training process of several."""

import sys


if __name__ == "__main__":
    # Python puts a script's directory first, in which our `inspect` would hide Python's own.
    sys.path.pop(0)

    from hsa_factory.llamafactory.launch import run
    from hsa_factory.training_file import read_training_file

    run(read_training_file(sys.argv[1], sys.argv[2:]))
