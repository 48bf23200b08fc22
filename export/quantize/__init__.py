"""What a lower precision can hold: calibration images, ranges, the int8 search, overflow."""
