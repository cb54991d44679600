"""What OUTPUT holds: commits, tables, history, reviews, and the checks of them."""
