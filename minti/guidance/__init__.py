"""What changes a prediction: several prompts, masks and an interval, gradients, attention, illusions."""
