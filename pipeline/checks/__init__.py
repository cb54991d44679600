"""What `fcnseg doctor` looks at."""
