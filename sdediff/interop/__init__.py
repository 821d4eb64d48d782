"""The library inside of others: `sdediff.interop.diffusers` has our solvers as a scheduler.

Nothing here is imported by `import sdediff`.
"""
