"""DeltaW beside its peers on the same work; every script prints ratios of one run."""
