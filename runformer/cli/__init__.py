"""Commands: each parses, calls and prints."""
