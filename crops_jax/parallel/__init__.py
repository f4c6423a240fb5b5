"""Devices and processes: the mesh and its rules, collectives, several processes as one run.

In: a mesh config and the devices that are there. Out: where every array lies, and the functions that move data between
devices.
"""
