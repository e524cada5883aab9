"""Who gives which piece of an image to whom, among the nodes that fetch it and the client that has it. Pure.

``exchange`` decides, ``neighbors`` chooses whom it exchanges pieces with, ``masks`` has what both count in.
"""
