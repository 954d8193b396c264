"""What ``torchrl-reg doctor`` looks at: the machine, and the temperature of runs."""
