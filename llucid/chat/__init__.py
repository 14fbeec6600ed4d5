"""A conversation with a model, and the terminal to have it in.

session.py      a conversation and the model that takes part in it
terminal.py     the conversation in a terminal, or through a pipe
storyteller/    a model to talk with, made by `llucid train --chat fables`
"""

from llucid.chat.session import Conversation, Session
from llucid.checkpoints.hub import STORYTELLER
from llucid.dialogs import NotAChatModel, encode_dialog, encode_learned, format_of

__all__ = ["STORYTELLER", "Conversation", "NotAChatModel", "Session", "encode_dialog", "encode_learned", "format_of"]
