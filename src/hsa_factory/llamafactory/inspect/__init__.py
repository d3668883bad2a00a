"""What the data became, for `hsa-factory inspect`."""
