"""Dialogues with a model: messages to ids, a conversation that keeps its cache, and the terminal to have it in.

formats.py      messages → ids: Llama 2, Llama 3, and what a folder's own template says
targets.py      messages → ids and which of them are learned: dialogues to train on
templates.py    templates to ids, in which nothing that was said can become a special token
sandbox.py      the process in which a template, which is somebody else's program, is run
session.py      a conversation and the model that takes part in it
terminal.py     the conversation in a terminal, or through a pipe
storyteller/    a model to talk with, made by `llucid train --chat fables`
"""

from pathlib import Path

from llucid.chat.formats import NotAChatModel, encode_dialog, format_of
from llucid.chat.session import Conversation, Session
from llucid.chat.targets import encode_learned

__all__ = ["STORYTELLER", "Conversation", "NotAChatModel", "Session", "encode_dialog", "encode_learned", "format_of"]

STORYTELLER = Path(__file__).with_name("storyteller")
"""The model that comes with the package: a Hugging Face folder."""
