"""The algebra of changes as values: sums, cuts and proofs, between the maths of one weight and the verbs."""
