"""Dialogues as ids: messages to what a chat model reads, by the published formats or by a folder's own template.

formats.py      messages to ids: Llama 2, Llama 3, and a folder's own template
loss_mask.py    messages to ids and which of them are learned, for training
comparison.py   the first difference between two chat tokenizers
templates.py    templates to ids, without special tokens from messages
sandbox.py      the process in which a template, a program from a stranger, is run
rendering.py    what runs in that process
"""

from llucid.dialogs.formats import NotAChatModel, encode_dialog, format_of
from llucid.dialogs.loss_mask import encode_learned

__all__ = ["NotAChatModel", "encode_dialog", "encode_learned", "format_of"]
