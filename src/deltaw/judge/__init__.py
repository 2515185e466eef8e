"""A loss that means something: fixed questions, paired scores, the choice of a snapshot, copies and drift."""
