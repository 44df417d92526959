"""The callbacks of the program, each with one task.

A callback derives from `toolkit.train.run.Callback` and observes a run. `standard`
builds the list of every trainer, in the order of their calls; `jobs.process.trainer`
adds those that depend on the device.
"""
