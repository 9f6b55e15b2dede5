"""What is known of the model in closed form."""

from . import landscape as landscape
