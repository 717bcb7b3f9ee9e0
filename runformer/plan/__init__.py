"""A task worked out without running it: what ``--dry_run True`` tells and writes down, and strategy files."""

from runformer.plan.make import make_plan
from runformer.plan.plan import Plan
from runformer.plan.search import with_best_layout
from runformer.plan.show import describe, write_plan
from runformer.plan.strategies import save_strategies

__all__ = ["Plan", "describe", "make_plan", "save_strategies", "with_best_layout", "write_plan"]
