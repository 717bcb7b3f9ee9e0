"""``python -m runformer.launch``: the same as ``msrun``."""

import sys

from runformer.cli.msrun import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
