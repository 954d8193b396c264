"""Several seeds trained in one process."""
