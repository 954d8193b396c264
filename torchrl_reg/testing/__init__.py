"""Holds anybody's loss to what it claims: against exact targets, and against those of each known mistake."""

from torchrl_reg.testing.lambda_returns import check_lambda_return
from torchrl_reg.testing.loss import check_loss
from torchrl_reg.testing.report import KNOWN_ERRORS, Check, Report
from torchrl_reg.testing.targets import METHODS, CheckError

__all__ = ["KNOWN_ERRORS", "METHODS", "Check", "CheckError", "Report", "check_lambda_return", "check_loss"]
