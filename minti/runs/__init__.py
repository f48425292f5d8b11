"""What goes round a training run: validation loss and early stopping, checkpoints, several processes."""
