"""What a suite's rules look at: for each artifact a few tables, with the facts that a rule needs as columns."""
