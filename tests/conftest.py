"""Settings of all tests."""

from hypothesis import settings

# How long an example takes depends on what else the machine does; a test that hangs has a timeout.
settings.register_profile("llmbuild", deadline=None)
settings.load_profile("llmbuild")
