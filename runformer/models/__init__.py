"""The decoder, its layers, families and adapters."""
