"""Where a model can be cut, and the cut itself.

`sites` finds the tensor that enters a split point; `capture` and `cut` turn a model into the programs of head and tail.
"""
