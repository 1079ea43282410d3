"""Smoothing: per-channel rescalings that move activation range into weights without changing the function."""
