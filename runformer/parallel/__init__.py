"""Devices, and how work is laid out over them."""
