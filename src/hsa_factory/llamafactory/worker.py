"""What torchrun starts: one training process of several."""

import sys

from hsa_factory.llamafactory.launch import run
from hsa_factory.training_file import read_training_file


if __name__ == "__main__":
    run(read_training_file(sys.argv[1], sys.argv[2:]))
