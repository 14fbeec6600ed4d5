"""Dialogues as ids: messages to what a chat model reads, by the published formats or by a folder's own template.

formats.py      messages → ids: Llama 2, Llama 3, and what a folder's own template says
targets.py      messages → ids and which of them are learned: dialogues to train on
templates.py    templates to ids, in which no message can become a special token
sandbox.py      the process in which a template, which is a program from a stranger, is run
"""

from llucid.dialogs.formats import NotAChatModel, encode_dialog, format_of
from llucid.dialogs.targets import encode_learned

__all__ = ["NotAChatModel", "encode_dialog", "encode_learned", "format_of"]
