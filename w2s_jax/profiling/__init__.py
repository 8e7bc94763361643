"""Profiles, compiler dumps, device peaks, and the cache of compiled programs."""
