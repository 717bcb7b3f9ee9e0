"""What a run tells: log files and console lines, training.jsonl, the progress bar, hardware figures."""

from runformer.observe.evaluation import EvaluationRow, append_row
from runformer.observe.log import close_logging, setup_logging
from runformer.observe.loss_line import EpochMean, LossRecord, format_loss_line, format_progress_line
from runformer.observe.metrics import MetricsWriter, StepRow, parse_row, read_rows
from runformer.observe.progress import Progress
from runformer.observe.utilization import flops_per_token, model_flops_utilization, peak_flops, peak_memory_bytes

__all__ = [
    "EpochMean",
    "EvaluationRow",
    "LossRecord",
    "MetricsWriter",
    "Progress",
    "StepRow",
    "append_row",
    "close_logging",
    "flops_per_token",
    "format_loss_line",
    "format_progress_line",
    "model_flops_utilization",
    "parse_row",
    "peak_flops",
    "peak_memory_bytes",
    "read_rows",
    "setup_logging",
]
