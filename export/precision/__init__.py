"""Lower precision: which layers take it, with which ranges, and what that costs the prediction."""
