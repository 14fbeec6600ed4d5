"""Look inside: every value that llama.py computes, what it means, and a page that shows both.

trace.py     runs llama.py with an eye on every expression; what is worked out from the values
server.py    the page's server, and its protocol
page/        what the browser gets
"""
