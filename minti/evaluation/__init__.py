"""Evaluation: CLIP scores, FID and its kin, the loss over timesteps, nearest neighbours."""
