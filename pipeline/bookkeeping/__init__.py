"""What is known of an output from its commits: ledger, sums, history, drift, reviews."""
