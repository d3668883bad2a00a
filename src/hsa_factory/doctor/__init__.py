"""`hsa-factory doctor`: whether this machine and what is installed on it can run HSA, by trying it."""
