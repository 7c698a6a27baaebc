"""What every process that a test starts reads first; `conftest.py` puts this folder on its path.

A million objects of torch live to the end. To look through them again and again while it is imported, and to take them
apart one by one at the end, is two fifths of what such a process costs. What is garbage by then is still collected.
"""

import atexit
import gc

gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)
atexit.register(gc.collect)  # the last that is registered runs first
