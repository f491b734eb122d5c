"""Settings that all tests share."""

import os

import hypothesis

# Where a change is judged, the same examples are tried each time: a failure there must be its own.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("steady")
