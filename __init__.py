"""mt: raw text to a trained, evaluated language model in one repository behind one command."""

__version__ = "0.1.0"
