"""Front door: MindFormers' converter between Hugging Face's weights and its own. See ``--help``."""

import sys

from runformer.cli.convert_weight import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
