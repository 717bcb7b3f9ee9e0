"""What ``--dry_run True`` does: a task worked out as far as that goes without running it, told and written down."""

from runformer.plan.make import make_plan
from runformer.plan.plan import Plan
from runformer.plan.show import describe, write_plan

__all__ = ["Plan", "describe", "make_plan", "write_plan"]
