"""What a study would take, without running it: work, machines, and the estimate for people."""
