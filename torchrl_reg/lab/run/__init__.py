"""One run: its folder, record, checkpoints, evaluation and resumption."""
