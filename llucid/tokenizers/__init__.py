"""Text to token ids and back.

tokenizer.py             what every tokenizer offers
loading.py               opens a saved one of any kind
characters.py            one id per character
added_tokens.py          the search for added tokens in a text
tokenizer_json.py        `tokenizer.json`, and training one; folder.py: the files beside it
tiktoken_ranks.py        Llama 3's `tokenizer.model`
sentencepiece_model.py   Llama 1's and 2's; protobuf.py: its file format
llama2c.py               llama2.c's `tokenizer.bin`; llama2c_export.py: others as such a file
gguf_vocabulary.py       the keys of a GGUF file; gguf_export.py: others as such keys
merges.py                the merges that a vocabulary implies
byte_pieces.py           bytes written as text
comparison.py            the first difference between two tokenizers
streaming.py             decoding ids that arrive one at a time
prompts.py               the ids of a prompt
text.py                  strings that UTF-8 cannot spell
"""

from llucid.tokenizers.loading import FILES, load_tokenizer, tokenizer_file
from llucid.tokenizers.streaming import StreamingDecoder
from llucid.tokenizers.tokenizer import Tokenizer

__all__ = ["FILES", "StreamingDecoder", "Tokenizer", "load_tokenizer", "tokenizer_file"]
