"""What `fcnseg evaluate` found."""
