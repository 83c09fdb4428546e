"""Weight diagnostics: what a teacher's scores say about text, before a student is trained on the weights they make."""

from prefkd.reports.weights.report import write_weight_report
from prefkd.reports.weights.terminal import weight_table

__all__ = ["weight_table", "write_weight_report"]
