"""Scripts for figures that are taken by hand, once or after a large change. No other
bench imports them."""
