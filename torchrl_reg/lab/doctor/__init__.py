"""The checks of ``torchrl-reg doctor``: the machine, the records of runs, their temperature."""
