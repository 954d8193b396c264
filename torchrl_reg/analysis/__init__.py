"""Finished runs to statistics: numpy and, for figures, matplotlib; no torch."""

from torchrl_reg.analysis.normalized import SAC_ANCHORS, NormalizedScores, normalized_score, sac_normalized_scores

__all__ = ["SAC_ANCHORS", "NormalizedScores", "normalized_score", "sac_normalized_scores"]
