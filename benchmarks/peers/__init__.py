"""Whole trainers side by side: each its own process, its own installation, the same pictures and base."""
