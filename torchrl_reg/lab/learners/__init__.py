"""Parts of the training loop: collection, replay, the update, schedules."""
