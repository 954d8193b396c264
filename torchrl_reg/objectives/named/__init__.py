"""The losses over Q-values of named methods: :class:`~torchrl_reg.objectives.QLearningLoss` with its slots filled."""
