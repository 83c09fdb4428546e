"""Weight diagnostics: what a teacher's scores say about text, before a student is trained on the weights they make."""

from prefkd.weight_report.report import write_weight_report
from prefkd.weight_report.terminal import weight_table

__all__ = ["weight_table", "write_weight_report"]
