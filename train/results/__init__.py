"""What a folder of runs says.

Reading: ``collect``, ``summary``. Numbers: ``cells``, ``analysis``. Their forms: ``formats``,
``latex``, ``plots``, ``report``, ``hparams``. No torch anywhere.
"""
