"""Names and spellings of other programs (ai-toolkit, musubi-tuner) in a job: one module per section, and what becomes
of each in our own keys. A section names its table in `foreign`; nothing else in a section knows another program.
"""
