"""Profiles, compiler dumps, peak rates of devices, and the cache of compiled programs."""
