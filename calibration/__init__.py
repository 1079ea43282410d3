"""What is measured and decided in PyTorch: checkpoints, spikes, prefixes, exclusions, smoothing, scales."""
