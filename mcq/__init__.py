"""The domain: what a question is, how a model is asked for one, and how its text is judged.

Pure: no I/O, no framework, no model. Training and serving share it, so that both write the same
prompt and read answers with the same parser.
"""
