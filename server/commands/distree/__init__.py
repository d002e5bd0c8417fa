"""The verbs that train, calibrate and query DistrEE's students."""
