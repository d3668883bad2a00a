"""The commands of `hsa-factory`."""
