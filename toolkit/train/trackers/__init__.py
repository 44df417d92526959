"""Programs that draw a run's curves: one class each, and the thread that feeds them."""
