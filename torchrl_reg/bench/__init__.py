"""What ``torchrl-reg bench`` measures: ours beside hand-written PyTorch, TorchRL's stock parts and other libraries."""
