"""Reports on sweeps as self-contained HTML files: ``torchrl-reg report``."""

from torchrl_reg.lab.analysis.report.sections import report_html
from torchrl_reg.lab.analysis.report.sweep import Sweep, read_sweep

__all__ = ["Sweep", "read_sweep", "report_html"]
