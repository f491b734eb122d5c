"""Settings that all tests share."""

import os

import hypothesis

# Machines are shared and noisy: no test fails because it took long.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
# Where a change is judged, the same examples are tried each time: a failure there must be its own.
hypothesis.settings.register_profile(
    "steady", parent=hypothesis.settings.get_profile("patient"), derandomize=True
)
hypothesis.settings.load_profile("steady" if os.environ.get("CI") else "patient")
