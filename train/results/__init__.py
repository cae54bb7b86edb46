"""What a folder of runs says.

Reading: ``collect``. Numbers: ``analysis``, ``basin``. Their forms: ``formats``, ``plots``,
``report``. No torch anywhere.
"""
