"""The study: the family trained alike on one task, deployed, measured, and held against what people say of it.

``plan`` says what is run, ``runs`` trains, ``deploy`` exports, quantizes and times, ``results`` is what is kept of it,
``claims`` asks the results, ``text`` and ``picture`` tell them.
"""
