"""Ways to compute HSA attention on a plan; none of them imports another."""
