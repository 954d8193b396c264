"""``torchrl-reg report``: a sweep as one HTML file that needs nothing but a browser."""

from torchrl_reg.analysis.report.page import report_html

__all__ = ["report_html"]
