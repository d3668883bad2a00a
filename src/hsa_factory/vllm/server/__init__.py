"""What clients of the server meet: types in their requests, reasons for a refusal, gauges."""
