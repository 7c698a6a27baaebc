"""The demonstration: a small network, real inputs, a real socket, and one table of what each way of answering costs.

``compoff demo`` runs it. Nothing else in the package imports from here.
"""
