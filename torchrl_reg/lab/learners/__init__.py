"""What the loop of a run is made of: collection, replay, the update, schedules."""
