"""Front door: one task, described by a YAML file, in this process. See ``--help``."""

import sys

from runformer.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
