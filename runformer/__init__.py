"""Runformer runs MindFormers tasks on PyTorch: one YAML file, one command."""
