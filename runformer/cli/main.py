"""``python run_mindformer.py --config X.yaml --run_mode train|finetune|eval|predict …``: runs one task."""

from __future__ import annotations

from collections.abc import Sequence

from runformer.cli.report import reporting_errors
from runformer.config import load_task


def main(argv: Sequence[str]) -> int:
    """Run the task that the arguments describe; return the exit code."""
    with reporting_errors(debug=wants_traceback(argv)) as outcome:
        task = load_task(argv)
        # Imported late: an error in the YAML shows before torch is loaded.
        if task.search is not None:
            from runformer.plan import with_best_layout

            task = with_best_layout(task)
        if task.dry_run:
            from runformer.plan import describe, make_plan, write_plan

            plan = make_plan(task)
            path = write_plan(plan)
            print(f"{describe(plan)}\n\nthe plan is in {path}; nothing was started")
            return outcome.exit_code
        if task.only_save_strategy:
            from runformer.plan import save_strategies

            print(f"the strategy files are in {save_strategies(task)}")
            return outcome.exit_code
        task.require_built()
        if task.predict is not None:
            from runformer.predict.run import predict

            predict(task)
        elif task.train is None:
            from runformer.train.evaluate import evaluate

            evaluate(task)
        else:
            from runformer.train.run import train

            train(task)
    return outcome.exit_code


def wants_traceback(argv: Sequence[str]) -> bool:
    """Whether ``--debug`` was given. Read by hand: errors of the command line itself come before its parser is done."""
    return "--debug" in argv
