"""The inside of an emulated engine: HTTP, batching and made-up text, with few imports.

A process of it starts in a quarter of a second and takes about 30 MB, so that a laptop can play a
cluster. `modelium.managers.emulated.process` puts the parts together.
"""
