"""Every input of the node Guidance Schedule, for tests that care for a few of them."""

SCHEDULE_INPUTS = {
    "shape": "interval",
    "axis": "percent",
    "scale": 4.0,
    "end_scale": 1.0,
    "start": 0.0,
    "end": 1.0,
    "outside": 1.0,
    "exponent": 2.0,
    "last_steps": 5,
    "keyframes": "0: 7.5, 1: 1",
    "expression": "1 + percent",
    "curve": "4",
}
