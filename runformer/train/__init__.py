"""Training: loop, step, loss, optimizer, schedule."""
