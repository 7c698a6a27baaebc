"""Which split point and which quality a call takes, or the device alone: Eq. 14 of the paper with rates and aims.

Pure arithmetic on times that others measured. Knows no connection, no head and no clock.
"""
