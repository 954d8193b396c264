"""What ``torchrl-reg bench`` measures: ours beside hand-written PyTorch, stock TorchRL and other libraries."""
