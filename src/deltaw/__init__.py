"""DeltaW: train a low-rank ΔW on your pictures, then judge, merge, convert and share it."""
