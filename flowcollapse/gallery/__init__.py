"""Pictures of the theory from real runs, each made by one command: `flowcollapse show NAME`."""

from .base import Check as Check, Picture as Picture
from .registry import PICTURES as PICTURES, draw as draw, run as run, table as table, write as write
