"""Devices and processes: the mesh and its rules, collectives, several processes as one run, a thread that works ahead.

In: a mesh config and the devices that are there. Out: where every array lies, and the functions that move data between
devices.
"""
