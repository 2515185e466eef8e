"""From a folder of pictures to a verified file: plan, feed, loop, state, evaluation, proof, report."""
