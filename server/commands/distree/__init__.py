"""The verbs that make, calibrate and ask DistrEE's students."""
