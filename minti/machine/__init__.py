"""What minti needs of the machine, and knows nothing of pictures.

Read `configs` for settings whose values are of the declared types, `files` for writing so that nothing is lost,
`messages` for what an error may hold, `processes` for several that work together, `noise` for where randomness comes
from.
"""
