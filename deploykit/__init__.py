"""deploykit takes trained recurrent PyTorch models to production and proves that they still compute the same."""

__version__ = "0.1.0"
