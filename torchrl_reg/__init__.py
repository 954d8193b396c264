"""Regularized reinforcement learning on TorchRL.

Three ways in: compose the losses of :mod:`torchrl_reg.objectives` in your own TorchRL script, run
``python recipes/m_iqn.py``, or sweep a recipe on a cluster.
"""

__version__ = "0.1.0"
