"""``python -m runformer.launch``: the same as ``msrun``."""

from runformer.cli.msrun import console

if __name__ == "__main__":
    console()
