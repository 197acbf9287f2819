"""What looks on: the doctor before training, the monitor during it."""
