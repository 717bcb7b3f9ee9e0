"""Looks over one machine before a job is started on it: what is there, what is missing, what will break."""

from runformer.doctor.examine import examine
from runformer.doctor.finding import Finding

__all__ = ["Finding", "examine"]
