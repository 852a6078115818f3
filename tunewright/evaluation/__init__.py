"""What a run proves: metrics with intervals, and the report that shows them."""
